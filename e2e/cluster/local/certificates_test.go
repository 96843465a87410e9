package local

import (
	"crypto/tls"
	"crypto/x509"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/client-go/tools/clientcmd"
)

func TestIssue(t *testing.T) {
	ca, err := newAuthority("test")
	if err != nil {
		t.Fatal(err)
	}
	who := subject{name: "someone", groups: []string{"a", "b"}, hosts: []string{"localhost", "127.0.0.1", "fd00::1"}}
	issued, err := ca.issue(who)
	if err != nil {
		t.Fatal(err)
	}
	loaded, err := tls.X509KeyPair(issued.cert, issued.key)
	if err != nil {
		t.Fatalf("key and certificate do not belong together: %v", err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)
	for _, host := range who.hosts {
		for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
			options := x509.VerifyOptions{Roots: roots, DNSName: host, KeyUsages: []x509.ExtKeyUsage{usage}}
			if _, err := loaded.Leaf.Verify(options); err != nil {
				t.Errorf("the certificate is not good for %s: %v", host, err)
			}
		}
	}
	if loaded.Leaf.Subject.CommonName != who.name || !cmp.Equal(who.groups, loaded.Leaf.Subject.Organization) {
		t.Errorf("got subject %s, want %s in %v", loaded.Leaf.Subject, who.name, who.groups)
	}
	if loaded.Leaf.IsCA {
		t.Error("an issued certificate can issue others")
	}
	stranger, err := newAuthority("test")
	if err != nil {
		t.Fatal(err)
	}
	roots = x509.NewCertPool()
	roots.AddCert(stranger.cert)
	if _, err := loaded.Leaf.Verify(x509.VerifyOptions{Roots: roots}); err == nil {
		t.Error("the certificate passes as another authority's of the same name")
	}
}

func TestWriteKubeconfig(t *testing.T) {
	ca, err := newAuthority("test")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "kubeconfig")
	if err := ca.writeKubeconfig(path, "https://192.0.2.1:6443", subject{name: "admin"}); err != nil {
		t.Fatal(err)
	}
	config, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		t.Fatal(err)
	}
	if config.Host != "https://192.0.2.1:6443" || !cmp.Equal(config.CAData, ca.pem) {
		t.Errorf("got server %s with authority\n%s", config.Host, config.CAData)
	}
	if _, err := tls.X509KeyPair(config.CertData, config.KeyData); err != nil {
		t.Errorf("credentials: %v", err)
	}
}
