package agent

import (
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/outrigger-mesh/outrigger/bootstrap"
)

// newRoot returns a root, DER.
func newRoot(t *testing.T) []byte {
	t.Helper()
	return newGiver(t).root.Raw
}

func encoded(roots ...[]byte) []byte {
	var text []byte
	for _, der := range roots {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	return text
}

// TestTrust follows the file of trusted roots through a rotation.
func TestTrust(t *testing.T) {
	dir := t.TempDir()
	mounted := filepath.Join(dir, "ca.crt")
	files := bootstrap.FilesIn(dir)
	if err := os.Mkdir(files.SecretsDir, 0o700); err != nil {
		t.Fatal(err)
	}
	settings := bootstrap.Settings{TrustDomain: "cluster.local", ControlPlaneID: "spiffe://cluster.local/ns/outrigger-system/sa/outriggerd"}
	i := newIdentity(Config{Settings: settings, TrustFile: mounted, Log: slog.New(slog.DiscardHandler)}, files)
	first, second := newRoot(t), newRoot(t)

	if err := i.writeTrust(); err == nil {
		t.Error("without a mounted file and without a signing there is nothing to trust; want an error")
	}
	steps := []struct {
		reason  string
		mounted [][]byte
		signing [][]byte // roots of the last signing
		want    int
	}{
		{"the mounted root before the first signing", [][]byte{first}, nil, 1},
		{"the same root from both is one", [][]byte{first}, [][]byte{first}, 1},
		{"the mounted file is early", [][]byte{first, second}, [][]byte{first}, 2},
		{"the mounted file is late", [][]byte{first}, [][]byte{first, second}, 2},
		{"the rotation has ended", [][]byte{second}, [][]byte{second}, 1},
	}
	for _, step := range steps {
		if err := os.WriteFile(mounted, encoded(step.mounted...), 0o600); err != nil {
			t.Fatal(err)
		}
		if len(step.signing) > 0 {
			must(t, i.hear(accepted{{Name: "cluster.local", Roots: step.signing}}))
		}
		if err := i.writeTrust(); err != nil {
			t.Fatalf("%s: %v", step.reason, err)
		}
		text, err := os.ReadFile(files.Trust)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Count(string(text), "BEGIN CERTIFICATE"); got != step.want {
			t.Errorf("%s: Envoy trusts %d roots; want %d", step.reason, got, step.want)
		}
	}

	// Envoy keeps what it has when the mounted file turns into something else.
	before, err := os.ReadFile(files.Trust)
	if err != nil {
		t.Fatal(err)
	}
	bad := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("nonsense")})
	if err := os.WriteFile(mounted, bad, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := i.writeTrust(); err == nil || !strings.Contains(err.Error(), mounted) {
		t.Errorf("got %v; want an error that names the file", err)
	}
	if after, err := os.ReadFile(files.Trust); err != nil || string(after) != string(before) {
		t.Errorf("the trusted roots changed: %v", err)
	}
}

func TestReplaceFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	for _, content := range []string{"one", "two"} {
		if err := replaceFile(path, []byte(content)); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != content {
			t.Errorf("got %q %v; want %q", got, err, content)
		}
	}
	if err := replaceFile(filepath.Join(dir, "none", "f"), nil); err == nil {
		t.Error("a folder that does not exist is no error")
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("files were left behind: %v %v", entries, err)
	}
}

// TestRenewalFollowsTheWholeChain wants an intermediate that ends before its
// leaf to decide when the next certificate is asked for.
func TestRenewalFollowsTheWholeChain(t *testing.T) {
	now := time.Now()
	leaf, intermediate := &x509.Certificate{NotAfter: now.Add(24 * time.Hour)}, &x509.Certificate{NotAfter: now.Add(time.Hour)}
	if got := end([]*x509.Certificate{leaf, intermediate}); !got.Equal(intermediate.NotAfter) {
		t.Errorf("the chain ends at %s; want the intermediate's end, %s", got, intermediate.NotAfter)
	}
	if got := end([]*x509.Certificate{leaf}); !got.Equal(leaf.NotAfter) {
		t.Errorf("the chain ends at %s; want the leaf's end, %s", got, leaf.NotAfter)
	}
}

// TestThoseSentAwayDoNotComeBackTogether wants what outriggerd asks for to be
// kept, and spread.
func TestThoseSentAwayDoNotComeBackTogether(t *testing.T) {
	earliest, latest := time.Hour, time.Duration(0)
	for range 1000 {
		d := spread(10 * time.Second)
		earliest, latest = min(earliest, d), max(latest, d)
	}
	if earliest < 10*time.Second || latest > 20*time.Second || latest-earliest < 5*time.Second {
		t.Errorf("asked to come back after 10 s, they come between %s and %s; want 10 to 20 s, spread", earliest, latest)
	}
	if d := spread(time.Hour); d > 2*longestRetryAfter {
		t.Errorf("whoever asks for an hour makes an agent wait %s", d)
	}
}

// TestTrustOfSeveralDomains follows the file of trusted roots through a change of the
// trust domain. Once outriggerd has said of which domain a root is, it counts for no
// other, wherever it comes from.
func TestTrustOfSeveralDomains(t *testing.T) {
	dir := t.TempDir()
	mounted := filepath.Join(dir, "ca.crt")
	files := bootstrap.FilesIn(dir)
	must(t, os.Mkdir(files.SecretsDir, 0o700))
	settings := bootstrap.Settings{TrustDomain: "old", ControlPlaneID: "spiffe://old/ns/outrigger-system/sa/outriggerd"}
	config := Config{Settings: settings, TrustFile: mounted, Log: slog.New(slog.DiscardHandler)}
	i := newIdentity(config, files)
	first, second := newRoot(t), newRoot(t)
	type told map[string][]byte
	steps := []struct {
		reason  string
		mounted [][]byte
		told    told // nil: nothing
		want    map[string]int
	}{
		{"before the first signing the mounted roots are of the pod's own domain", [][]byte{first, second}, nil, map[string]int{"old": 2}},
		{"outriggerd has named them", [][]byte{first}, told{"old": first}, map[string]int{"old": 1}},
		{"a mounted root that nobody has named may be of any", [][]byte{first, second}, told{"old": first}, map[string]int{"old": 2}},
		{"both are named", [][]byte{first, second}, told{"old": first, "new": second}, map[string]int{"old": 1, "new": 1}},
		{"the mounted file is late", [][]byte{first}, told{"new": second}, map[string]int{"new": 1}},
		{"the mounted file is empty", nil, told{"new": second}, map[string]int{"new": 1}},
	}
	for _, step := range steps {
		must(t, os.WriteFile(mounted, encoded(step.mounted...), 0o600))
		var heard accepted
		for name, root := range step.told {
			heard = append(heard, acceptedDomain{Name: name, Roots: roots{root}})
		}
		must(t, i.hear(heard))
		wantAccepted(t, step.reason, i, step.want)
	}
	must(t, i.writeTrust())
	secret, err := os.ReadFile(files.Trust)
	must(t, err)
	for _, want := range []string{"envoy.tls.cert_validator.spiffe", `"exact":"spiffe://new/ns/outrigger-system/sa/outriggerd"`, `"name":"new"`} {
		if !strings.Contains(string(secret), want) {
			t.Errorf("Envoy's file does not have %s:\n%s", want, secret)
		}
	}
	if strings.Contains(string(secret), "trusted_ca") {
		t.Errorf("Envoy's file has a bundle for all trust domains:\n%s", secret)
	}

	// The container is restarted, when the mesh has long forgotten the pod's domain.
	again := newIdentity(config, files)
	must(t, os.WriteFile(mounted, encoded(second), 0o600))
	must(t, again.recall())
	wantAccepted(t, "after a restart", again, map[string]int{"new": 1})
	must(t, os.WriteFile(files.Accepted, []byte("{"), 0o600))
	if err := newIdentity(config, files).recall(); err == nil {
		t.Error("damaged notes are no error")
	}
}

func wantAccepted(t *testing.T, reason string, i *identity, want map[string]int) {
	t.Helper()
	trusted, err := i.trusted()
	must(t, err)
	got := map[string]int{}
	for _, d := range trusted {
		got[d.Name] = len(d.Roots)
	}
	if !maps.Equal(got, want) {
		t.Errorf("%s: accepted are %v; want %v roots", reason, got, want)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestPolling holds how often outriggerd is asked who signs.
func TestPolling(t *testing.T) {
	for life, want := range map[time.Duration]time.Duration{
		24 * time.Hour: pollInterval, 10 * time.Minute: pollInterval, time.Minute: 3 * time.Second, 0: pollInterval, time.Second: soonest,
	} {
		i := &identity{life: life}
		earliest, latest := time.Hour, time.Duration(0)
		for range 1000 {
			d := i.pollIn()
			earliest, latest = min(earliest, d), max(latest, d)
		}
		if earliest < want*6/10 || latest > want*14/10 || latest-earliest < want/3 {
			t.Errorf("with certificates of %s, outriggerd is asked again after %s to %s; want about %s, spread", life, earliest, latest, want)
		}
	}
}

// TestCertificateOfTwoURIs holds that a name is not believed that comes beside one of
// another trust domain.
func TestCertificateOfTwoURIs(t *testing.T) {
	root := newRoot(t)
	trusted := accepted{{Name: "new", Roots: roots{root}}, {Name: "old", Roots: roots{root}}}
	leaf := &x509.Certificate{URIs: []*url.URL{
		{Scheme: "spiffe", Host: "old", Path: "/ns/shop/sa/thief"}, {Scheme: "spiffe", Host: "new", Path: "/ns/outrigger-system/sa/outriggerd"},
	}}
	if err := trusted.verify([]*x509.Certificate{leaf}, x509.ExtKeyUsageServerAuth); err == nil || !strings.Contains(err.Error(), "2 URIs") {
		t.Errorf("got %v", err)
	}
}
