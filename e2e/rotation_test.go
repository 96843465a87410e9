//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/outrigger-mesh/outrigger/e2e/harness"
	"github.com/outrigger-mesh/outrigger/internal/rotation"
)

// rotationTime is how long one rotation may take: five steps, of which one waits for
// every agent to ask who signs, which it does every half a minute.
const rotationTime = 4 * time.Minute

// certificateStatus is what "outrigger certificate status -o json" says, as far as
// these tests read it.
type certificateStatus struct {
	Signing   string
	Proxies   int
	Connected int
	Rotation  *struct{ Step string }
	Progress  *struct{ Done, Total int }
	Last      *struct{ From string }
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

// backTo has a Secret sign again, and deletes those of roots that are of no use then.
func backTo(t *testing.T, secret string) {
	t.Helper()
	rotate(t, "rotate", "--secret", secret, "--trust-domain", "cluster.local")
	for _, name := range rotation.OwnSecrets() {
		if name == secret {
			continue
		}
		old := &corev1.Secret{}
		old.Namespace, old.Name = harness.SystemNamespace, name
		if err := client.IgnoreNotFound(cluster.Client.Delete(t.Context(), old)); err != nil {
			t.Error(err)
		}
	}
}

// TestRotationCutsNothing moves the mesh to a new root, to another trust domain and
// back, under load and with connections of each protocol held open; the first time
// the replica that leads is killed in the middle, the second time it is undone once.
func TestRotationCutsNothing(t *testing.T) {
	ns := namespace(t, "rotation", inMesh)
	client, stranger, urls := openStore(t, ns)
	v := keepVigil(t, client, urls...)
	fast := cluster.StartLoad(t.Context(), client, urls[0], "--rate", "1000", "--concurrency", "32", "--timeout", "20s")
	fresh := cluster.StartLoad(t.Context(), client, urls[0], "--rate", "20", "--keep-alive=false", "--timeout", "20s")
	before, err := statusOfCertificates(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	started := time.Now()

	if _, err := cluster.CLI(t.Context(), "certificate", "rotate", "--no-wait"); err != nil {
		t.Fatal(err)
	}
	eventually(t, func(ctx context.Context) error {
		s, err := statusOfCertificates(ctx)
		if err == nil && (s.Rotation == nil || s.Rotation.Step != "sign") {
			err = fmt.Errorf("the rotation is at %+v", s.Rotation)
		}
		return err
	})
	killElected(t)
	rotate(t, "resume")
	after, err := statusOfCertificates(t.Context())
	if err != nil || after.Signing == before.Signing || after.Rotation != nil || after.Last.From != before.Signing {
		t.Errorf("after a new root: %+v, %v; before %s signed", after, err, before.Signing)
	}

	if said := rotate(t, "rotate", "--trust-domain", "rotated.example"); !strings.Contains(said, fmt.Sprintf("%d/%[1]d proxies", after.Proxies)) {
		t.Errorf("it did not say that all %d proxies follow:\n%s", after.Proxies, said)
	}
	certificates, err := cluster.CLI(t.Context(), "proxy", "get", "certs", client.Name, "-n", ns)
	if err != nil || !strings.Contains(certificates, "spiffe://rotated.example/ns/"+ns+"/sa/client") || strings.Contains(certificates, "spiffe://cluster.local/") {
		t.Errorf("the client's Envoy has another certificate, %v:\n%s", err, certificates)
	}
	answersNow(t, stranger, urls[0], 403)

	if _, err := cluster.CLI(t.Context(), "certificate", "rotate", "--trust-domain", "cluster.local", "--no-wait"); err != nil {
		t.Fatal(err)
	}
	eventually(t, func(ctx context.Context) error {
		s, err := statusOfCertificates(ctx)
		if err == nil && s.Rotation == nil {
			err = fmt.Errorf("it has not begun")
		}
		return err
	})
	rotate(t, "undo")
	backTo(t, before.Signing) // a Secret and its authority have one name

	took := time.Since(started)
	for name, stop := range map[string]func() (harness.Load, error){"over connections that are kept": fast, "each over a new connection": fresh} {
		load, err := stop()
		if err == nil {
			err = load.All("200")
		}
		if err != nil {
			t.Errorf("requests %s: %v", name, err)
		}
		t.Logf("%d requests %s, %.0f a second, slowest %.0f ms, none failed: %t", load.Requests, name, float64(load.Requests)/took.Seconds(), load.Latency["max"], err == nil)
	}
	v.end(t)
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
