//go:build e2e

package e2e

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/outrigger-mesh/outrigger/e2e/cluster/local"
	"github.com/outrigger-mesh/outrigger/e2e/harness"
	"github.com/outrigger-mesh/outrigger/internal/mesh"
)

// userPKI is what a user with cert-manager has: a root, and below it an
// intermediate that signs, for so long.
const userPKI = `apiVersion: cert-manager.io/v1
kind: ClusterIssuer
metadata: {name: e2e-self-signed}
spec: {selfSigned: {}}
---
apiVersion: cert-manager.io/v1
kind: Certificate
metadata: {name: root, namespace: %[1]s}
spec:
  isCA: true
  commonName: Root of the user
  secretName: root
  privateKey: {algorithm: ECDSA, size: 256, rotationPolicy: Always}
  issuerRef: {name: e2e-self-signed, kind: ClusterIssuer}
---
apiVersion: cert-manager.io/v1
kind: ClusterIssuer
metadata: {name: e2e-root}
spec: {ca: {secretName: root}}
---
apiVersion: cert-manager.io/v1
kind: Certificate
metadata: {name: intermediate, namespace: %[1]s}
spec:
  isCA: true
  commonName: Intermediate of the user
  secretName: intermediate
  duration: %[2]s
  renewBefore: %[3]s
  privateKey: {algorithm: ECDSA, size: 256, rotationPolicy: Always}
  issuerRef: {name: e2e-root, kind: ClusterIssuer}
---
apiVersion: cert-manager.io/v1
kind: ClusterIssuer
metadata: {name: e2e-mesh}
spec: {ca: {secretName: intermediate}}
`

// runCertManager runs cert-manager with a user's issuers, whose intermediate is renewed
// at half of its life, and returns the namespace of their Secrets. It is stopped and
// its kinds are gone when the test has ended.
func runCertManager(t *testing.T, life time.Duration) (pki string, running *stoppable) {
	t.Helper()
	pki = prefix + "pki"
	ctx := context.WithoutCancel(t.Context())
	running = &stoppable{start: func() *local.CertManager {
		started, err := local.StartCertManager(ctx, cluster.Kubeconfig, t.TempDir(), "--cluster-resource-namespace="+pki)
		if err != nil {
			t.Fatal(err)
		}
		return started
	}}
	running.CertManager = running.start()
	t.Cleanup(func() {
		err := local.RemoveCertManagerKinds(ctx, cluster.Kubeconfig)
		running.Stop()
		if err != nil {
			t.Fatal(err)
		}
	})
	ns := &corev1.Namespace{}
	ns.Name = pki
	if err := cluster.Client.Create(t.Context(), ns); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cluster.DeleteNamespaces(ctx, pki); err != nil {
			t.Error(err)
		}
	})
	apply(t, userPKI, pki, life, life/2)
	return pki, running
}

// A stoppable cert-manager can be started again.
type stoppable struct {
	*local.CertManager

	start func() *local.CertManager
}

// TestCertManagerIsTheIssuer installs the mesh with cert-manager as issuer of all
// certificates: those of workloads, of outriggerd, of the webhooks and of an ingress
// controller outside of the mesh. OSM's criterion is that calls succeed before and
// after each rotation of the certificates; here no call may fail during one either.
// The issuer ends so soon that all certificates are renewed while the test looks.
// It does not run beside other tests.
func TestCertManagerIsTheIssuer(t *testing.T) {
	pki, running := runCertManager(t, 2*time.Minute)
	ingress := namespace(t, "ingress", outsideMesh)
	reinstall(
		t, "", "certificates.issuer=certManager", "certificates.certManager.issuer=e2e-mesh",
		"certificates.certManager.kind=ClusterIssuer", "certificates.workloadDuration=10m",
		"webhook.certManager.enabled=true", "webhook.certManager.issuerRef.name=e2e-root", "webhook.certManager.issuerRef.kind=ClusterIssuer",
		"certificates.ingressGateway.namespace="+ingress, "certificates.ingressGateway.serviceAccount=controller",
	)
	checkRoot(t, pki)

	ns := namespace(t, "on", inMesh)
	pods := all(t, ns, httpEcho("server"), caller("client"))
	server, agent := pods[0], pods[1]
	allow(t, ns, "server", ns+"/client", ingress+"/controller")
	url := echoURL(ns, "server", "/")
	consecutive(t, agent, url, "200", 5)
	got := echo(t, agent, url)
	if want := "URI=" + spiffe(ns, "client"); !strings.Contains(strings.Join(got.Headers["X-Forwarded-Client-Cert"], ";"), want) {
		t.Errorf("the application hears that its caller is %v, want %s", got.Headers["X-Forwarded-Client-Cert"], want)
	}
	fromIngress(t, ingress, server)

	webhook := servedByWebhook(t, ingress)
	var secret corev1.Secret
	secret.Namespace, secret.Name = harness.SystemNamespace, "outrigger-webhook-certificate"
	if err := cluster.Client.Delete(t.Context(), &secret); err != nil { // cert-manager makes another
		t.Fatal(err)
	}
	stop := cluster.StartLoad(t.Context(), agent, url, "--concurrency", "2", "--rate", "20")
	for round := range 2 {
		renewed(t, server, agent)
		t.Logf("rotation %d of both certificates", round+1)
	}
	load, err := stop()
	if err == nil {
		err = load.All("200")
	}
	if err != nil {
		t.Errorf("calls while certificates were rotated twice: %v", err)
	}
	t.Logf("%d requests while certificates were rotated twice, none failed", load.Requests)
	consecutive(t, agent, url, "200", 5)
	if err := harness.Eventually(t.Context(), 3*time.Minute, func(context.Context) error {
		if now := servedByWebhook(t, ingress); now == webhook {
			return errors.New("the webhook serves the certificate of before")
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	// Pods are still injected: the API server believes the webhook's certificate.
	if pod, err := dryRun(t, app{name: "late", account: "default"}.podIn(ns)); err != nil || !isInjected(pod) {
		t.Errorf("a pod after the webhook's certificate was renewed: %v", err)
	}
	eventually(t, noRequestsLeft)

	// While nobody answers, a pod that starts waits, and says for what.
	running.Stop()
	caller("waits").create(t, ns)
	if err := harness.Eventually(t.Context(), 2*time.Minute, func(ctx context.Context) error { return declined(ctx, ns, "waits") }); err != nil {
		t.Error(err)
	}
	running.CertManager = running.start()
	answers(t, ready(t, ns, "app=waits"), url, 403) // it has a certificate; policy does not allow its account
	eventually(t, noRequestsLeft)
}

// TestRotationToCertManager moves a mesh from its own CA to cert-manager, with another
// root, and then back to a CA of its own below that same root: the kind of the issuer
// changes, and no trust. It does so under traffic, and does not run beside other tests.
func TestRotationToCertManager(t *testing.T) {
	pki, _ := runCertManager(t, 24*time.Hour)
	reinstall(t, fmt.Sprintf(`apiVersion: cert-manager.io/v1
kind: Certificate
metadata: {name: mesh-ca, namespace: %s}
spec:
  isCA: true
  commonName: Intermediate for the mesh
  secretName: mesh-ca
  privateKey: {algorithm: ECDSA, size: 256}
  issuerRef: {name: e2e-root, kind: ClusterIssuer}
`, harness.SystemNamespace), "certificates.issuer=builtIn", "certificates.workloadDuration=1h", "certificates.secrets={mesh-ca}",
		"certificates.certManager.issuer=e2e-mesh", "certificates.certManager.kind=ClusterIssuer")
	ns, outside := namespace(t, "on", inMesh), namespace(t, "outside", outsideMesh)
	buyer, stranger, urls := openStore(t, ns)
	httpEcho("server").create(t, ns)
	visitor := caller("visitor").run(t, outside)
	server := ready(t, ns, "app=server")
	v, c := keepVigil(t, buyer, urls...), callAllTheTime(t, buyer, urls[0])
	for _, move := range []struct{ to, below string }{
		{"--to={certManager: {issuer: e2e-mesh, kind: ClusterIssuer}}", "Intermediate of the user"},
		{"--secret=mesh-ca", "Intermediate for the mesh"},
	} {
		rotate(t, "rotate", move.to)
		checkRoot(t, pki)
		checkSigner(t, visitor, server, move.below)
		consecutive(t, stranger, urls[0], "403", 5)
	}
	c.end(t)
	v.end(t)
	eventually(t, noRequestsLeft)
}

// checkSigner wants the certificate of the app "server" to be its own, and to have been
// signed by an authority of that name, or by one below it.
func checkSigner(t *testing.T, visitor, server corev1.Pod, name string) {
	t.Helper()
	chain := handshake(t, visitor, server).ConnectionState().PeerCertificates
	checkLeaf(t, chain, spiffe(server.Namespace, "server"), string(server.UID))
	var signers []string
	for _, c := range chain {
		signers = append(signers, c.Issuer.CommonName)
	}
	if !slices.Contains(signers, name) {
		t.Errorf("%q signed; want %q", signers, name)
	}
}

// declined wants a pod's users to have been told that its certificate was not signed.
func declined(ctx context.Context, namespace, pod string) error {
	events, err := cluster.Set.CoreV1().Events(namespace).List(ctx, metav1.ListOptions{FieldSelector: "reason=CertificateNotSigned,involvedObject.name=" + pod})
	if err != nil {
		return err
	}
	for _, event := range events.Items {
		if strings.Contains(event.Message, "ClusterIssuer e2e-mesh") {
			return nil
		}
	}
	return fmt.Errorf("no Event on pod %s says what the issuer does: %v", pod, events.Items)
}

// checkRoot wants the mesh to trust the user's root and nothing else.
func checkRoot(t *testing.T, namespace string) {
	t.Helper()
	var secret corev1.Secret
	if err := cluster.Client.Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: "root"}, &secret); err != nil {
		t.Fatal(err)
	}
	eventually(t, func(ctx context.Context) error {
		var trust corev1.ConfigMap
		err := cluster.Client.Get(ctx, client.ObjectKey{Namespace: harness.SystemNamespace, Name: mesh.TrustConfigMap}, &trust)
		if err == nil && strings.TrimSpace(trust.Data["ca.crt"]) != strings.TrimSpace(string(secret.Data["tls.crt"])) {
			err = fmt.Errorf("the mesh trusts\n%s\nwant the user's root\n%s", trust.Data["ca.crt"], secret.Data["tls.crt"])
		}
		return err
	})
}

// renewed waits until each pod has another certificate.
func renewed(t *testing.T, pods ...corev1.Pod) {
	t.Helper()
	before := make([]string, len(pods))
	for i, pod := range pods {
		var err error
		if before[i], err = leafOf(t.Context(), pod); err != nil {
			t.Fatal(err)
		}
	}
	for i, pod := range pods {
		if err := harness.Eventually(t.Context(), 2*time.Minute, func(ctx context.Context) error {
			now, err := leafOf(ctx, pod)
			if err == nil && now == before[i] {
				err = fmt.Errorf("pod %s has the certificate of before still", pod.Name)
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
}

// fromIngress calls as an ingress controller outside of the mesh does, with the
// certificate in its Secret.
func fromIngress(t *testing.T, namespace string, server corev1.Pod) {
	t.Helper()
	controller := caller("controller")
	controller.change = func(spec *corev1.PodSpec) {
		spec.Volumes = append(spec.Volumes, corev1.Volume{Name: "certificate", VolumeSource: corev1.VolumeSource{
			Secret: &corev1.SecretVolumeSource{SecretName: "outrigger-ingress-certificate"},
		}})
		spec.Containers[0].VolumeMounts = append(spec.Containers[0].VolumeMounts, corev1.VolumeMount{Name: "certificate", MountPath: "/certificate"})
	}
	pod := controller.run(t, namespace)
	name := "8080.server." + server.Namespace + ".outrigger:8080"
	target := "https://" + name + "/"
	// curl verifies names of DNS only, and has no way to verify the server's identity.
	call := []string{
		"curl", "--silent", "--show-error", "--output", "/dev/null", "--write-out", "%{http_code}", "--insecure",
		"--resolve", name + ":" + server.Status.PodIP,
	}
	eventually(t, func(ctx context.Context) error {
		result, err := cluster.Exec(ctx, pod, pod.Spec.Containers[0].Name, append(call, "--cert", "/certificate/tls.crt", "--key", "/certificate/tls.key", target)...)
		if err == nil && result.Stdout != "200" {
			err = fmt.Errorf("the ingress controller is answered %q %s", result.Stdout, result.Stderr)
		}
		return err
	})
	result, err := cluster.Exec(t.Context(), pod, pod.Spec.Containers[0].Name, append(call, target)...)
	if err != nil || result.Stdout == "200" {
		t.Errorf("without its certificate it is answered %q (%v)", result.Stdout, err)
	}
}

// servedByWebhook returns the serial number of the certificate that the webhook
// shows, as a pod sees it.
func servedByWebhook(t *testing.T, namespace string) string {
	t.Helper()
	tunnel := ready(t, namespace, "app=controller")
	var shown string
	eventually(t, func(context.Context) error {
		conn, err := cluster.Dial(t.Context(), tunnel, service(harness.SystemNamespace, "outrigger-webhook")+":443")
		if err != nil {
			return err
		}
		defer conn.Close()
		client := tls.Client(conn, &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // it is only looked at
		if err := client.HandshakeContext(t.Context()); err != nil {
			return err
		}
		shown = client.ConnectionState().PeerCertificates[0].SerialNumber.String()
		return nil
	})
	return shown
}

// noRequestsLeft wants no CertificateRequest of the mesh.
func noRequestsLeft(ctx context.Context) error {
	list := &unstructured.UnstructuredList{}
	list.SetAPIVersion("cert-manager.io/v1")
	list.SetKind("CertificateRequestList")
	if err := cluster.Client.List(ctx, list, client.InNamespace(harness.SystemNamespace), client.HasLabels{"outrigger.dev/certificate-request"}); err != nil {
		return err
	}
	if n := len(list.Items); n > 0 {
		return fmt.Errorf("%d CertificateRequests are left", n)
	}
	return nil
}
