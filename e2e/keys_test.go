//go:build e2e

package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/outrigger-mesh/outrigger/e2e/harness"
)

// planted is what the key is called that the tests put where none should be.
const planted = "planted"

// TestPrivateKeysAreNowhere looks for the private key of every workload in all
// that etcd wrote, in all Secrets, in all logs and on the wire, while pods start,
// get their certificates and call each other. A key that the test plants in each
// of these places shows that the search would find one.
func TestPrivateKeysAreNowhere(t *testing.T) {
	ns, outside := namespace(t, "on", inMesh), namespace(t, "outside", outsideMesh)
	decoy := newKey(t)
	all(t, outside, caller("client"), httpEcho("server"))
	leaker := ready(t, outside, "app=client")

	packets, err := cluster.Capture(t.Context(), "tcp port 15128 or tcp port 8080 or tcp port 9443", func() error {
		pods := all(t, ns, caller("client"), httpEcho("server"))
		allow(t, ns, "server", ns+"/client")
		answers(t, pods[0], echoURL(ns, "server", "/"), 200)
		answers(t, leaker, echoURL(outside, "server", "/"), 200, "--header", "leak: "+hexOf(t, decoy))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	wanted := workloadKeys(t, ns)
	decoyWanted, err := harness.Want(planted, decoy)
	if err != nil {
		t.Fatal(err)
	}
	wanted = append(wanted, decoyWanted)
	plant(t, outside, decoy)

	look := func(place string, found map[string]bool, content []byte) {
		for _, name := range harness.Found(content, wanted) {
			found[name] = true
			if name != planted {
				t.Errorf("%s holds the private key of %s", place, name)
			}
		}
	}
	places := map[string]map[string]bool{"wire": {}, "etcd": {}, "Secrets": {}, "logs of pods": {}}
	look("the wire", places["wire"], packets)
	searchSecrets(t, func(name string, content []byte) { look(name, places["Secrets"], content) })
	searchFiles(t, "pki/etcd", []string{"member/snap/db", "member/wal"}, func(name string, content []byte) { look("etcd's "+name, places["etcd"], content) })
	searchFiles(t, "pods", []string{"outriggerd", "outrigger-proxy", "outrigger-init"}, func(name string, content []byte) { look("log "+name, places["logs of pods"], content) })
	// What components write nobody can plant.
	searchFiles(t, "logs", []string{"kubelet.log", "kube-apiserver.log", "etcd.log", "containerd.log"}, func(name string, content []byte) { look("log "+name, map[string]bool{}, content) })
	for place, found := range places {
		if !found[planted] {
			t.Errorf("%s: the planted key was not found, so nothing else would have been", place)
		}
	}
}

func hexOf(t *testing.T, key *ecdsa.PrivateKey) string {
	t.Helper()
	secret, err := key.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(secret)
}

// workloadKeys are those of all proxies, of which a namespace's must be some.
func workloadKeys(t *testing.T, namespace string) []harness.Wanted {
	t.Helper()
	keys, err := cluster.WorkloadKeys()
	if err != nil {
		t.Fatal(err)
	}
	var wanted []harness.Wanted
	for public, key := range keys {
		w, err := harness.Want(fmt.Sprintf("the proxy whose public key has the digest %x", sha256.Sum256([]byte(public))), key)
		if err != nil {
			t.Fatal(err)
		}
		wanted = append(wanted, w)
	}
	pods, err := cluster.Ready(t.Context(), namespace, "app", 2)
	if err != nil {
		t.Fatal(err)
	}
	if len(wanted) < len(pods) {
		t.Fatalf("%d keys of workloads were found on this machine; namespace %s alone has %d pods", len(wanted), namespace, len(pods))
	}
	t.Logf("%d keys of workloads are looked for", len(wanted))
	return wanted
}

// plant puts a key into a Secret, and so into etcd, and into the log of a pod.
func plant(t *testing.T, namespace string, key *ecdsa.PrivateKey) {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	secret := &corev1.Secret{Data: map[string][]byte{"tls.key": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})}}
	secret.Namespace, secret.Name = namespace, planted
	if err := cluster.Client.Create(t.Context(), secret); err != nil {
		t.Fatal(err)
	}
	teller := app{name: "teller", args: []string{"--leak-" + hexOf(t, key)}, change: func(spec *corev1.PodSpec) { spec.RestartPolicy = corev1.RestartPolicyNever }}
	pod := teller.create(t, namespace)
	eventually(t, func(ctx context.Context) error {
		text, err := cluster.Logs(ctx, *pod, "teller")
		if err == nil && !strings.Contains(text, hexOf(t, key)) {
			err = fmt.Errorf("the pod says %q", text)
		}
		return err
	})
}

// searchSecrets looks into every value of every Secret.
func searchSecrets(t *testing.T, look func(name string, content []byte)) {
	t.Helper()
	var secrets corev1.SecretList
	if err := cluster.Client.List(t.Context(), &secrets, &client.ListOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, s := range secrets.Items {
		for entry, value := range s.Data {
			look(fmt.Sprintf("Secret %s/%s, entry %s,", s.Namespace, s.Name, entry), value)
		}
	}
}

// searchFiles looks into every file of a folder, and holds that the ones that
// matter are among them and not empty.
func searchFiles(t *testing.T, folder string, expected []string, look func(name string, content []byte)) {
	t.Helper()
	missing := slices.Clone(expected)
	err := cluster.Files(t.Context(), folder, func(name string, content []byte) {
		if len(content) > 0 {
			missing = slices.DeleteFunc(missing, func(part string) bool { return strings.Contains(name, part) })
		}
		look(name, content)
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(missing) > 0 {
		t.Errorf("%s has no file with %q in its name that is not empty: the search looks in the wrong place", folder, missing)
	}
}
