//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/outrigger-mesh/outrigger/e2e/harness"
)

// rotationTime is how long one rotation may take: five steps, of which one waits for
// every agent to ask who signs, which it does every half a minute.
const rotationTime = 4 * time.Minute

// certificateStatus is what "outrigger certificate status -o json" says, as far as
// these tests read it.
type certificateStatus struct {
	Signing string
	// Authorities are those that are trusted, by name.
	Authorities []struct{ Name string }
	Proxies     int
	Connected   int
	Rotation    *struct{ Step string }
	Progress    *struct {
		Done, Total int
		Behind      []struct{ Who, Why string }
	}
	Last *struct{ From string }
}

func statusOfCertificates(ctx context.Context) (certificateStatus, error) {
	var s certificateStatus
	text, err := cluster.CLI(ctx, "certificate", "status", "-o", "json")
	// Its exit status is 1 while something is under way.
	if jsonErr := json.NewDecoder(bytes.NewBufferString(text)).Decode(&s); jsonErr != nil {
		return s, fmt.Errorf("read the status: %w, %w, of %q", jsonErr, err, text)
	}
	return s, nil
}

// rotate runs a command that rotates until it is done, and returns what it said.
func rotate(t *testing.T, args ...string) string {
	t.Helper()
	started := time.Now()
	said, err := cluster.CLI(t.Context(), append([]string{"certificate"}, append(args, "--wait", rotationTime.String())...)...)
	if err != nil {
		t.Fatalf("outrigger certificate %s: %v\n%s", strings.Join(args, " "), err, said)
	}
	t.Logf("outrigger certificate %s took %s:\n%s", strings.Join(args, " "), time.Since(started).Round(time.Second), said)
	return said
}

// killElected deletes the replica of outriggerd that leads.
func killElected(t *testing.T) {
	t.Helper()
	var lease coordinationv1.Lease
	if err := cluster.Client.Get(t.Context(), client.ObjectKey{Namespace: harness.SystemNamespace, Name: "outriggerd"}, &lease); err != nil {
		t.Fatal(err)
	}
	name, _, _ := strings.Cut(*lease.Spec.HolderIdentity, "_")
	pod := &corev1.Pod{}
	pod.Namespace, pod.Name = harness.SystemNamespace, name
	if err := cluster.Client.Delete(t.Context(), pod, client.GracePeriodSeconds(0)); err != nil {
		t.Fatalf("kill the elected replica %s: %v", name, err)
	}
	t.Logf("killed %s, which led", name)
}

// TestRotationCutsNothing moves the mesh to a new root, to another trust domain and
// back, under load and with connections of each protocol held open. The first time one
// pod's proxy hangs, and the replica that leads is killed in the middle; the third time
// it is undone; and the way back is OSM's, by the roles of MeshRootCertificates.
func TestRotationCutsNothing(t *testing.T) {
	ns := namespace(t, "rotation", inMesh)
	client, stranger, urls := openStore(t, ns)
	hangs := httpEcho("hangs").run(t, ns)
	allow(t, ns, "hangs", ns+"/client")
	answers(t, client, echoURL(ns, "hangs", "/"), 200)
	v, c := keepVigil(t, client, urls...), callAllTheTime(t, client, urls[0])
	before, err := statusOfCertificates(t.Context())
	if err != nil {
		t.Fatal(err)
	}

	rotateWithout(t, hangs)
	after, err := statusOfCertificates(t.Context())
	if err != nil || after.Signing == before.Signing || after.Rotation != nil || after.Last.From != before.Signing {
		t.Errorf("after a new root: %+v, %v; before %s signed", after, err, before.Signing)
	}
	// This one waits for the pod that hung, which has to find back by itself.
	if said := rotate(t, "rotate", "--trust-domain", "rotated.example"); !strings.Contains(said, fmt.Sprintf("%d/%[1]d proxies", after.Proxies)) {
		t.Errorf("it did not say that all %d proxies follow:\n%s", after.Proxies, said)
	}
	namedIn(t, client, "rotated.example")
	answersNow(t, stranger, urls[0], 403)
	consecutive(t, client, echoURL(ns, "hangs", "/"), "200", 5)
	neverRestarted(t, hangs)

	rotateAndUndo(t, "--trust-domain", "cluster.local")
	namedIn(t, client, "rotated.example")
	rolesLeadTo(t, before.Signing, "rotated.example", func(trustDomain string) { namedIn(t, client, trustDomain) }) // a Secret and its authority have one name
	answersNow(t, stranger, urls[0], 403)
	dropRoots(t, before.Signing)

	c.end(t)
	v.end(t)
}

// A crowd calls while the mesh changes: a thousand times a second over connections that
// are kept, and twenty times each over a new one.
type crowd struct {
	started time.Time
	loads   map[string]func() (harness.Load, error)
}

func callAllTheTime(t *testing.T, from corev1.Pod, url string) crowd {
	t.Helper()
	return crowd{time.Now(), map[string]func() (harness.Load, error){
		"over connections that are kept": cluster.StartLoad(t.Context(), from, url, "--rate", "1000", "--concurrency", "64", "--timeout", "20s"),
		"each over a new connection":     cluster.StartLoad(t.Context(), from, url, "--rate", "20", "--keep-alive=false", "--timeout", "20s"),
	}}
}

// end wants every call to have been answered 200.
func (c crowd) end(t *testing.T) {
	t.Helper()
	took := time.Since(c.started)
	for name, stop := range c.loads {
		load, err := stop()
		if err == nil {
			err = load.All("200")
		}
		if err != nil {
			t.Errorf("requests %s: %v", name, err)
		}
		t.Logf("%d requests %s, %.0f a second, half within %.0f ms, slowest %.0f ms, none failed: %t", load.Requests, name, float64(load.Requests)/took.Seconds(), load.Latency["p50"], load.Latency["max"], err == nil)
	}
}

// rotateWithout moves the mesh to a new root while a pod's proxy hangs. The rotation
// waits for that pod, names it, and goes on without it when people say so, also when
// the replica that leads is killed then. In the end the proxy does not hang any more.
func rotateWithout(t *testing.T, pod corev1.Pod) {
	t.Helper()
	thawed := false
	thaw := func() {
		if thawed {
			return
		}
		thawed = true
		if err := cluster.Thaw(pod); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(thaw) // also of what a Freeze that failed has stopped
	if err := cluster.Freeze(pod); err != nil {
		t.Fatal(err)
	}
	name := pod.Namespace + "/" + pod.Name
	if _, err := cluster.CLI(t.Context(), "certificate", "rotate", "--no-wait"); err != nil {
		t.Fatal(err)
	}
	waitsInStep(t, "trust", name)
	if _, err := cluster.CLI(t.Context(), "certificate", "rotate", "--force", name, "--no-wait"); err != nil {
		t.Fatal(err)
	}
	waitsInStep(t, "sign")
	killElected(t)
	rotate(t, "resume")
	thaw()
}

// waitsInStep waits until a rotation is in a step; where pods are named, until it waits
// for these and for nobody else.
func waitsInStep(t *testing.T, step string, behind ...string) {
	t.Helper()
	eventually(t, func(ctx context.Context) error {
		s, err := statusOfCertificates(ctx)
		if err != nil {
			return err
		}
		if s.Rotation == nil || s.Rotation.Step != step {
			return fmt.Errorf("the rotation is at %+v, not at %s", s.Rotation, step)
		}
		var names []string
		for _, b := range s.Progress.Behind {
			names = append(names, b.Who)
		}
		if len(behind) > 0 && !slices.Equal(names, behind) {
			return fmt.Errorf("behind are %v, not %v", s.Progress.Behind, behind)
		}
		return nil
	})
}

// rotateAndUndo begins a rotation, and turns it back when the new authority is trusted.
func rotateAndUndo(t *testing.T, args ...string) {
	t.Helper()
	if _, err := cluster.CLI(t.Context(), append([]string{"certificate", "rotate", "--no-wait"}, args...)...); err != nil {
		t.Fatal(err)
	}
	waitsInStep(t, "trust")
	rotate(t, "undo")
}

// namedIn wants a pod's Envoy to have a certificate of a trust domain, and of no other.
func namedIn(t *testing.T, pod corev1.Pod, trustDomain string) {
	t.Helper()
	want := "spiffe://" + trustDomain + "/ns/" + pod.Namespace + "/sa/" + pod.Spec.ServiceAccountName
	text, err := cluster.CLI(t.Context(), "proxy", "get", "certs", pod.Name, "-n", pod.Namespace)
	if err != nil || strings.Count(text, want) == 0 || strings.Count(text, "spiffe://") != strings.Count(text, want) {
		t.Errorf("%s's Envoy has not only certificates of %s, %v:\n%s", pod.Name, want, err, text)
	}
}

// neverRestarted wants that no container of the pods was restarted.
func neverRestarted(t *testing.T, pods ...corev1.Pod) {
	t.Helper()
	for _, p := range pods {
		now := &corev1.Pod{}
		if err := cluster.Client.Get(t.Context(), client.ObjectKeyFromObject(&p), now); err != nil {
			t.Fatal(err)
		}
		for _, c := range append(now.Status.InitContainerStatuses, now.Status.ContainerStatuses...) {
			if c.RestartCount > 0 {
				t.Errorf("container %s of pod %s was restarted", c.Name, p.Name)
			}
		}
	}
}

// TestRecoveryFromALostRoot deletes the Secret with the mesh's root, restarts the
// control plane, which cannot sign then, and brings the mesh back with the one
// command for it: pods that run call each other again, and none is restarted.
func TestRecoveryFromALostRoot(t *testing.T) {
	ns := namespace(t, "recovery", inMesh)
	pods := all(t, ns, httpEcho("server"), caller("client"))
	allow(t, ns, "server", ns+"/client")
	url := echoURL(ns, "server", "/")
	answers(t, pods[1], url, 200)
	before, err := statusOfCertificates(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	secret := &corev1.Secret{}
	secret.Namespace, secret.Name = harness.SystemNamespace, before.Signing // they have one name
	if err := cluster.Client.Delete(t.Context(), secret); err != nil {
		t.Fatal(err)
	}
	if err := cluster.Client.DeleteAllOf(t.Context(), &corev1.Pod{}, client.InNamespace(harness.SystemNamespace), client.MatchingLabels{"app.kubernetes.io/component": "outriggerd"}, client.GracePeriodSeconds(0)); err != nil {
		t.Fatal(err)
	}
	started := time.Now()
	rotate(t, "recover", "--yes")
	if _, err := cluster.Ready(t.Context(), harness.SystemNamespace, "app.kubernetes.io/component=outriggerd", 2); err != nil {
		t.Fatalf("the control plane is not ready with the new root: %v", err)
	}
	err = harness.Eventually(t.Context(), rotationTime, func(ctx context.Context) error {
		s, err := statusOfCertificates(ctx)
		if err == nil && (s.Signing == before.Signing || s.Connected != s.Proxies) {
			err = fmt.Errorf("%s signs, %d of %d proxies are connected", s.Signing, s.Connected, s.Proxies)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	consecutive(t, pods[1], url, "200", 20, "--keep-alive=false")
	t.Logf("the mesh was back after %s", time.Since(started).Round(time.Second))
	neverRestarted(t, pods...)
}
