//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/outrigger-mesh/outrigger/e2e/cluster/local"
	"github.com/outrigger-mesh/outrigger/e2e/harness"
)

const vaultMount = "pki/e2e"

// startVault runs Vault on the node, where pods reach it and it reaches the API
// server, with the documented role, and lets outriggerd in as its service account.
func startVault(t *testing.T, role map[string]any) *local.Vault {
	t.Helper()
	if !cluster.Ours {
		t.Fatal("Vault runs on this machine; it needs the cluster of this machine, whose pods reach it")
	}
	host, err := url.Parse(cluster.Config.Host)
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	vault, err := local.StartVault(ctx, t.TempDir(), host.Hostname())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(vault.Stop)
	if err := vault.MakePKI(ctx, vaultMount, "mesh", "cluster.local", role); err != nil {
		t.Fatal(err)
	}
	policy, err := vault.MakePolicy(ctx, vaultMount, "mesh")
	if err != nil {
		t.Fatal(err)
	}
	err = vault.MakeKubernetesAuth(ctx, "kubernetes", local.KubernetesAuth{
		Host: cluster.Config.Host, CA: string(cluster.Config.CAData), Reviewer: reviewer(t),
		Role: "outriggerd", Namespace: harness.SystemNamespace, ServiceAccount: "outriggerd", Policy: policy, TTL: "1m",
	})
	if err != nil {
		t.Fatal(err)
	}
	return vault
}

// reviewer returns a token with which Vault may ask whose a token is.
func reviewer(t *testing.T) string {
	t.Helper()
	ns := namespace(t, "vault", outsideMesh)
	apply(t, `
apiVersion: v1
kind: ServiceAccount
metadata: {namespace: %[1]s, name: reviewer}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: %[1]s}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: "system:auth-delegator"}
subjects: [{kind: ServiceAccount, namespace: %[1]s, name: reviewer}]
`, ns)
	t.Cleanup(func() {
		if err := cluster.Delete(context.WithoutCancel(t.Context()), fmt.Sprintf(`
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: %s}
`, ns)); err != nil {
			t.Error(err)
		}
	})
	made, err := cluster.Set.CoreV1().ServiceAccounts(ns).CreateToken(t.Context(), "reviewer", &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return made.Status.Token
}

// reinstall installs the mesh anew with the values, and as it was when the test
// has ended. What is given is made in the system namespace first.
func reinstall(t *testing.T, objects string, values ...string) {
	t.Helper()
	remove := func(ctx context.Context) error {
		if _, err := cluster.CLI(ctx, "uninstall"); err != nil {
			return err
		}
		return cluster.DeleteNamespaces(ctx, harness.SystemNamespace)
	}
	t.Cleanup(func() { // the tests that follow need the mesh
		ctx := context.WithoutCancel(t.Context())
		if err := remove(ctx); err != nil {
			t.Fatal(err)
		}
		if err := install(ctx); err != nil {
			t.Fatal(err)
		}
	})
	if err := remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	apply(t, "apiVersion: v1\nkind: Namespace\nmetadata: {name: %s}\n", harness.SystemNamespace)
	apply(t, "%s", objects)
	if _, err := cluster.Install(t.Context(), append([]string{"trafficPolicy=enforced"}, values...)...); err != nil {
		t.Fatalf("%v\n%s", err, cluster.Report(t.Context(), harness.SystemNamespace))
	}
}

// installWithVault installs a mesh that may log in to Vault, and that issuer.
func installWithVault(t *testing.T, vault *local.Vault, issuer string) {
	t.Helper()
	ca := "\n    " + strings.ReplaceAll(strings.TrimSpace(string(vault.CA)), "\n", "\n    ")
	reinstall(t, fmt.Sprintf(`
apiVersion: v1
kind: Secret
metadata: {namespace: %s, name: vault-ca}
stringData:
  ca.crt: |%s
`, harness.SystemNamespace, ca),
		"certificates.issuer="+issuer, "certificates.workloadDuration=1h", "certificates.vault.address="+vault.Address,
		"certificates.vault.mount="+vaultMount, "certificates.vault.role=mesh", "certificates.vault.caSecret=vault-ca",
		"certificates.vault.kubernetes.role=outriggerd")
}

// leafOf returns the serial number of the certificate that a pod's Envoy has.
func leafOf(ctx context.Context, pod corev1.Pod) (string, error) {
	result, err := cluster.Exec(ctx, pod, "outrigger-proxy", "/outrigger-agent", "admin", "GET", "/certs")
	if err != nil {
		return "", err
	}
	var all struct {
		Certificates []struct {
			Chain []struct {
				Serial string `json:"serial_number"`
			} `json:"cert_chain"`
		} `json:"certificates"`
	}
	if err := json.Unmarshal([]byte(result.Stdout), &all); err != nil {
		return "", fmt.Errorf("read what Envoy says of its certificates: %w: %s", err, result.Stderr)
	}
	for _, certificate := range all.Certificates {
		if len(certificate.Chain) > 0 {
			return certificate.Chain[0].Serial, nil
		}
	}
	return "", errors.New("Envoy has no certificate")
}

// signedAgain waits until the Envoys of pods have certificates that were signed after
// the call.
func signedAgain(t *testing.T, pods ...corev1.Pod) {
	t.Helper()
	before := map[string]string{}
	for _, pod := range pods {
		var err error
		if before[pod.Name], err = leafOf(t.Context(), pod); err != nil {
			t.Fatal(err)
		}
	}
	for _, pod := range pods {
		eventually(t, func(ctx context.Context) error {
			now, err := leafOf(ctx, pod)
			if err == nil && now == before[pod.Name] {
				err = fmt.Errorf("%s has the certificate of before", pod.Name)
			}
			return err
		})
	}
}

// TestVaultSigns runs a mesh whose certificates Vault signs, for a minute each, and
// seals and restarts Vault under traffic. It does not run beside other tests.
func TestVaultSigns(t *testing.T) {
	vault := startVault(t, map[string]any{"max_ttl": "60s"})
	installWithVault(t, vault, "vault")
	ns, outside := namespace(t, "on", inMesh), namespace(t, "outside", outsideMesh)
	buyer, stranger, urls := openStore(t, ns)
	httpEcho("server").create(t, ns)
	visitor := caller("visitor").run(t, outside)
	server := ready(t, ns, "app=server")
	for _, url := range urls {
		consecutive(t, buyer, url, "200", 5)
	}
	consecutive(t, stranger, urls[0], "403", 5)
	chain := handshake(t, visitor, server).ConnectionState().PeerCertificates
	checkLeaf(t, chain, spiffe(ns, "server"), string(server.UID))
	if lives := chain[0].NotAfter.Sub(chain[0].NotBefore); lives > 2*time.Minute {
		t.Errorf("the certificate is valid for %s; want what the role allows", lives)
	}
	if chain[0].Issuer.CommonName != "Root of "+vaultMount {
		t.Errorf("%s signed; want Vault", chain[0].Issuer)
	}
	var trust corev1.ConfigMap
	if err := cluster.Client.Get(t.Context(), client.ObjectKey{Namespace: harness.SystemNamespace, Name: "outrigger-roots"}, &trust); err != nil || !strings.Contains(trust.Data["vault-mesh.crt"], "BEGIN CERTIFICATE") {
		t.Errorf("Vault's root is not recorded: %v, %v", trust.Data, err)
	}

	v := keepVigil(t, buyer, urls...)
	signedAgain(t, server, buyer)
	if err := vault.Seal(t.Context()); err != nil {
		t.Fatal(err)
	}
	saysSealed(t, server)
	if err := vault.Unseal(t.Context()); err != nil {
		t.Fatal(err)
	}
	signedAgain(t, server, buyer)
	vault.Stop()
	if err := vault.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := vault.Unseal(t.Context()); err != nil {
		t.Fatal(err)
	}
	signedAgain(t, server, buyer)
	v.end(t)
	late := caller("late")
	late.account = "client"
	consecutive(t, late.run(t, ns), urls[0], "200", 5)
}

// TestRotationToVault moves a mesh from its own CA to Vault, with another root and an
// issuer of another kind, under traffic. It does not run beside other tests.
func TestRotationToVault(t *testing.T) {
	vault := startVault(t, nil)
	installWithVault(t, vault, "builtIn")
	ns, outside := namespace(t, "on", inMesh), namespace(t, "outside", outsideMesh)
	buyer, stranger, urls := openStore(t, ns)
	httpEcho("server").create(t, ns)
	visitor := caller("visitor").run(t, outside)
	server := ready(t, ns, "app=server")
	v, c := keepVigil(t, buyer, urls...), callAllTheTime(t, buyer, urls[0])
	to := fmt.Sprintf(`{vault: {address: %q, mount: %s, role: mesh, caSecret: vault-ca, kubernetes: {role: outriggerd}}}`, vault.Address, vaultMount)
	said, err := cluster.CLI(t.Context(), "certificate", "rotate", "--to", to, "--wait", "5m")
	if err != nil {
		t.Fatalf("%v\n%s", err, cluster.Report(t.Context(), harness.SystemNamespace))
	}
	t.Log(said)
	consecutive(t, stranger, urls[0], "403", 5)
	c.end(t)
	v.end(t)
	checkSigner(t, visitor, server, "Root of "+vaultMount)
}

// saysSealed waits until a pod's agent has asked in vain, and wants it to say why in
// Vault's words.
func saysSealed(t *testing.T, pod corev1.Pod) {
	t.Helper()
	eventually(t, func(ctx context.Context) error {
		text, err := cluster.Logs(ctx, pod, "outrigger-proxy")
		if err == nil && !strings.Contains(text, "Vault is sealed") {
			err = fmt.Errorf("the agent says:\n%s", text)
		}
		return err
	})
}
