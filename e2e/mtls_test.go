//go:build e2e

package e2e

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// An echoed is what of an httpEcho's answer tests look at.
type echoed struct {
	Protocol string              `json:"protocol"`
	Path     string              `json:"path"`
	Remote   string              `json:"remote"`
	Headers  map[string][]string `json:"headers"`
}

// echo asks an httpEcho from a pod of the client image.
func echo(t *testing.T, from corev1.Pod, url string) echoed {
	t.Helper()
	result, err := cluster.Exec(t.Context(), from, from.Spec.Containers[0].Name, "curl", "--silent", "--show-error", "--fail", url)
	if err != nil {
		t.Fatal(err)
	}
	var got echoed
	if err := json.Unmarshal([]byte(result.Stdout), &got); err != nil {
		t.Fatalf("read the answer of %s: %v: %s%s", url, err, result.Stdout, result.Stderr)
	}
	return got
}

// spiffe is the identity of a service account as certificates have it.
func spiffe(namespace, account string) string {
	return "spiffe://cluster.local/ns/" + namespace + "/sa/" + account
}

func TestCallsAreMutualTLS(t *testing.T) {
	t.Parallel()
	ns := namespace(t, "on", inMesh)
	pods := all(t, ns, httpEcho("server"), caller("client"))
	server, client := pods[0], pods[1]
	allow(t, ns, "server", ns+"/client")
	url := echoURL(ns, "server", "/secret-path")
	answers(t, client, url, 200)

	for name, side := range map[string]struct {
		pod  corev1.Pod
		stat string
	}{
		"client": {client, fmt.Sprintf("%s/server_8080.ssl.handshake", ns)},
		"server": {server, "15003.ssl.handshake"},
	} {
		handshakes, err := cluster.Stat(t.Context(), side.pod, side.stat)
		if err != nil || handshakes == 0 {
			t.Errorf("the %s's Envoy counts %d TLS handshakes (%v)", name, handshakes, err)
		}
	}
	got := echo(t, client, url)
	if want := "URI=" + spiffe(ns, "client"); !strings.Contains(strings.Join(got.Headers["X-Forwarded-Client-Cert"], ";"), want) {
		t.Errorf("the application hears that its caller is %v, want %s", got.Headers["X-Forwarded-Client-Cert"], want)
	}
}

func TestTheWireHasNoPlainText(t *testing.T) {
	t.Parallel()
	if !cluster.Ours {
		t.Log("the nodes of this cluster are elsewhere: TestCallsAreMutualTLS is what is left")
		return
	}
	ns := namespace(t, "on", inMesh)
	pods := all(t, ns, httpEcho("server"), caller("client"))
	server, client := pods[0], pods[1]
	allow(t, ns, "server", ns+"/client")
	url := echoURL(ns, "server", "/tell-tale-path")
	answers(t, client, url, 200)

	const requests = 40
	packets, err := cluster.Capture(t.Context(), "tcp port 8080 and host "+server.Status.PodIP, func() error {
		load, err := cluster.Load(t.Context(), client, url, "--requests", fmt.Sprint(requests), "--header", "tell-tale: header", "--keep-alive=false")
		if err != nil {
			return err
		}
		return load.All("200")
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, readable := range []string{"HTTP/1.1", "tell-tale", "Identity"} {
		if bytes.Contains(packets, []byte(readable)) {
			t.Errorf("%q can be read on the wire", readable)
		}
	}
	// Records of application data in TLS 1.3 look like this.
	if records := bytes.Count(packets, []byte{0x17, 0x03, 0x03}); records < requests {
		t.Errorf("%d TLS records in %d bytes for %d requests: the capture missed the traffic", records, len(packets), requests)
	}
}

func TestPlainTextFromOutsideIsRefused(t *testing.T) {
	t.Parallel()
	ns, outside := namespace(t, "on", inMesh), namespace(t, "outside", outsideMesh)
	client := caller("client").create(t, ns)
	stranger := caller("stranger").create(t, outside)
	pods := all(t, ns, httpEcho("server"), banner("speaks-first"))
	clientPod, strangerPod := ready(t, client.Namespace, "app=client"), ready(t, stranger.Namespace, "app=stranger")
	allow(t, ns, "server", ns+"/client")
	answers(t, clientPod, echoURL(ns, "server", "/"), 200)

	answersNow(t, strangerPod, echoURL(ns, "server", "/"), 0)
	answersNow(t, strangerPod, "http://"+pods[0].Status.PodIP+":8080/", 0)
	// A pod of the mesh that goes round the Service does not get through either.
	answersNow(t, clientPod, "http://"+pods[0].Status.PodIP+":8080/", 0)
	closed(t, strangerPod, service(ns, "speaks-first")+":9000")
	closed(t, strangerPod, pods[1].Status.PodIP+":9000")
	// In permissive mode policies are not asked for, but certificates are.
	annotate(t, ns, "outrigger.dev/traffic-policy", "permissive")
	opens(t, clientPod, service(ns, "speaks-first")+":9000", bannerText)
	answersNow(t, strangerPod, echoURL(ns, "server", "/"), 0)
	closed(t, strangerPod, pods[1].Status.PodIP+":9000")
	// None of the proxy's ports lets anybody in.
	for _, port := range []string{"15000", "15001", "15003"} {
		closed(t, strangerPod, pods[0].Status.PodIP+":"+port, "--send", "GET / HTTP/1.0\r\n\r\n", "--timeout", "2s")
	}
}

// TestACertificateNamesOneIdentity looks at what a server presents, and that it
// wants a certificate in return.
func TestACertificateNamesOneIdentity(t *testing.T) {
	t.Parallel()
	ns, outside := namespace(t, "on", inMesh), namespace(t, "outside", outsideMesh)
	caller("stranger").create(t, outside)
	server := httpEcho("server").run(t, ns)
	stranger := ready(t, outside, "app=stranger")
	client := handshake(t, stranger, server)
	state := client.ConnectionState()
	if state.Version != tls.VersionTLS13 {
		t.Errorf("the version is %s, want TLS 1.3", tls.VersionName(state.Version))
	}
	checkLeaf(t, state.PeerCertificates, spiffe(ns, "server"), string(server.UID))
	if n, err := client.Read(make([]byte, 1)); err == nil || n > 0 {
		t.Error("the server speaks to a client without a certificate")
	}
}

// handshake connects to the app "server" as a client without a certificate, through
// a pod outside of the mesh. The connection ends with the test.
func handshake(t *testing.T, from, server corev1.Pod) *tls.Conn {
	t.Helper()
	conn, err := cluster.Dial(t.Context(), from, server.Status.PodIP+":8080")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	client := tls.Client(conn, &tls.Config{
		ServerName:         "8080.server." + server.Namespace + ".outrigger",
		InsecureSkipVerify: true, //nolint:gosec // callers look at it
		NextProtos:         []string{"h2"},
	})
	// In TLS 1.3 the client has finished before the server has seen that there is
	// no certificate.
	if err := client.HandshakeContext(t.Context()); err != nil {
		t.Fatalf("handshake: %v", err)
	}
	return client
}

// checkLeaf checks whose the first certificate of a chain is, and that the mesh's
// roots vouch for it.
func checkLeaf(t *testing.T, chain []*x509.Certificate, uri, uid string) {
	t.Helper()
	leaf := chain[0]
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != uri {
		t.Errorf("the certificate's URIs are %v, want exactly %s", leaf.URIs, uri)
	}
	if leaf.Subject.SerialNumber != uid {
		t.Errorf("the certificate is for the pod %s, want %s", leaf.Subject.SerialNumber, uid)
	}
	parsed, err := url.Parse(uri)
	if err != nil {
		t.Fatal(err)
	}
	part := strings.Split(parsed.Path, "/")
	if want := part[4] + "." + part[2] + ".cluster.local"; len(leaf.DNSNames) != 1 || leaf.DNSNames[0] != want {
		t.Errorf("the certificate's DNS names are %v, want %s, as OSM has it", leaf.DNSNames, want)
	}
	intermediates := x509.NewCertPool()
	for _, c := range chain[1:] {
		intermediates.AddCert(c)
	}
	_, err = leaf.Verify(x509.VerifyOptions{
		Roots: roots(t), Intermediates: intermediates,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		t.Errorf("the mesh's roots do not vouch for the certificate: %v", err)
	}
}
