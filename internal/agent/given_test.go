package agent

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/outrigger-mesh/outrigger/bootstrap"
)

// A giver is somebody who gives certificates, with a root of their own.
type giver struct {
	root *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newGiver(t *testing.T) giver {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	must(t, err)
	root, err := x509.ParseCertificate(der)
	must(t, err)
	return giver{root: root, key: key}
}

// give returns a certificate for some names, said to be for the first.
func (g giver) give(t *testing.T, life time.Duration, names ...string) given {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(life),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	for _, name := range names {
		uri, err := url.Parse(name)
		must(t, err)
		template.URIs = append(template.URIs, uri)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, g.root, key.Public(), g.key)
	must(t, err)
	text, err := encodeKey(key)
	must(t, err)
	return given{id: names[0], key: text, chain: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
}

var shopper = bootstrap.Node{Namespace: "shop", ServiceAccount: "buyer"}

const (
	oldName = "spiffe://old/ns/shop/sa/buyer"
	newName = "spiffe://new/ns/shop/sa/buyer"
)

// TestChoose has answers of a Workload API while two trust domains are accepted.
func TestChoose(t *testing.T) {
	old, next, stranger := newGiver(t), newGiver(t), newGiver(t)
	trusted := accepted{{Name: "new", Roots: roots{next.root.Raw}}, {Name: "old", Roots: roots{old.root.Raw}}}
	inOld, inNew := old.give(t, time.Hour, oldName), next.give(t, time.Hour, newName)
	s := signer{settings: bootstrap.Settings{TrustDomain: "old"}, node: shopper}
	for name, tc := range map[string]struct {
		answer []given
		signs  string
		want   string // trust domain
		fails  string
	}{
		"the one that signs":                       {answer: []given{inOld, inNew}, signs: "new", want: "new"},
		"the one that signs, whatever the order":   {answer: []given{inNew, inOld}, signs: "old", want: "old"},
		"another that is accepted":                 {answer: []given{inNew}, signs: "old", want: "new"},
		"the first of several":                     {answer: []given{inNew, inOld}, signs: "third", want: "new"},
		"the one that can be used":                 {answer: []given{stranger.give(t, time.Hour, newName), inOld}, signs: "new", want: "old"},
		"beside others":                            {answer: []given{next.give(t, time.Hour, "spiffe://new/ns/shop/sa/thief"), inNew}, signs: "new", want: "new"},
		"none of its own":                          {answer: []given{next.give(t, time.Hour, "spiffe://new/ns/shop/sa/thief")}, fails: "want one for " + newName + " or " + oldName},
		"nothing":                                  {fails: "has certificates for []"},
		"a trust domain that is not accepted":      {answer: []given{old.give(t, time.Hour, "spiffe://third/ns/shop/sa/buyer")}, fails: "for [spiffe://third/ns/shop/sa/buyer]"},
		"the new name by the old root":             {answer: []given{old.give(t, time.Hour, newName)}, fails: "verify the certificate up to the mesh's roots"},
		"the old name by the new root":             {answer: []given{next.give(t, time.Hour, oldName)}, fails: "verify the certificate up to the mesh's roots"},
		"both names":                               {answer: []given{old.give(t, time.Hour, oldName, newName)}, fails: "want exactly " + newName + " or " + oldName},
		"said to be for the pod, and for somebody": {answer: []given{{id: oldName, key: inOld.key, chain: old.give(t, time.Hour, "spiffe://old/ns/shop/sa/thief").chain}}, fails: "read certificate and key"},
		"over": {answer: []given{old.give(t, -time.Second, oldName)}, fails: "expired"},
	} {
		t.Run(name, func(t *testing.T) {
			_, signed, err := s.choose(tc.answer, trusted, tc.signs)
			if tc.fails != "" {
				if err == nil || !strings.Contains(err.Error(), tc.fails) {
					t.Fatalf("got %v; want an error with %q", err, tc.fails)
				}
				return
			}
			must(t, err)
			if signed.by.trustDomain != tc.want {
				t.Errorf("chosen is the certificate of %s; want that of %s", signed.by.trustDomain, tc.want)
			}
		})
	}
}

// TestTake follows what is taken of answers while a mesh moves from one trust domain to
// another.
func TestTake(t *testing.T) {
	dir := t.TempDir()
	files := bootstrap.FilesIn(dir)
	must(t, os.Mkdir(files.SecretsDir, 0o700))
	old, next, third := newGiver(t), newGiver(t), newGiver(t)
	settings := bootstrap.Settings{TrustDomain: "old", ControlPlaneID: "spiffe://old/ns/outrigger-system/sa/outriggerd"}
	i := newIdentity(Config{Settings: settings, Node: shopper, TrustFile: filepath.Join(dir, "ca.crt"), Log: slog.New(slog.DiscardHandler)}, files)
	must(t, os.WriteFile(i.trustFile, encoded(old.root.Raw), 0o600))
	inOld := acceptedDomain{Name: "old", Roots: roots{old.root.Raw}}
	inNew := acceptedDomain{Name: "new", Roots: roots{next.root.Raw}}
	bothRoots := acceptedDomain{Name: "old", Roots: roots{old.root.Raw, next.root.Raw}}
	threeRoots := acceptedDomain{Name: "old", Roots: roots{old.root.Raw, next.root.Raw, third.root.Raw}}
	first, second, brief := old.give(t, time.Hour, oldName), next.give(t, time.Hour, newName), old.give(t, longestHandover/2, oldName)
	otherRoot, itsRenewal, thirdRoot := next.give(t, time.Hour, oldName), next.give(t, time.Hour, oldName), third.give(t, time.Hour, oldName)
	lived := func() { i.life = time.Hour }
	stood := func() { i.heard = i.heard.Add(-standing / 2) } // what outriggerd said last
	steps := []struct {
		reason string
		told   accepted // nil: as before
		signs  authority
		answer []given
		want   given
		fails  string
		passes func() // before the answer
	}{
		{"before outriggerd has said anything the pod's own domain counts", nil, authority{}, []given{first}, first, "", nil},
		{"a domain that is not accepted is refused", accepted{inOld}, authority{name: "a", trustDomain: "old"}, []given{second}, first, "want one for " + oldName, nil},
		{"one that does not sign is not taken while there is one that does", accepted{inNew, inOld}, authority{}, []given{second}, first, "outriggerd signs for old", nil},
		{"of both, that which signs", nil, authority{}, []given{second, first}, first, "", nil},
		{"one that is about to end is taken", nil, authority{}, []given{brief}, brief, "", nil},
		{"and not kept against one of another domain", nil, authority{}, []given{second}, second, "", lived},
		{"back to the one that signs", nil, authority{}, []given{second, first}, first, "", nil},
		{"another domain signs", nil, authority{name: "b", trustDomain: "new"}, []given{second, first}, second, "", nil},
		{"the one that does not sign is not taken any more", nil, authority{}, []given{first}, second, "outriggerd signs for new", nil},
		{"the old domain has been left", accepted{inNew}, authority{}, []given{first}, second, "want one for " + newName, nil},
		{"it is back, and alone", accepted{inOld}, authority{name: "a", trustDomain: "old"}, []given{first}, first, "", nil},
		{"one of a root that came after who signs is not taken while another is good", accepted{bothRoots}, authority{name: "a", generation: "2", trustDomain: "old"}, []given{otherRoot}, first, "not trusted when authority a began to sign", nil},
		{"another that is about to end is taken", nil, authority{}, []given{brief}, brief, "", nil},
		{"and not kept against one of the new root", nil, authority{}, []given{otherRoot}, otherRoot, "", lived},
		{"which is not better than its renewal", nil, authority{}, []given{itsRenewal}, itsRenewal, "", nil},
		{"back to the old root", nil, authority{}, []given{first}, first, "", nil},
		{"which is kept again", nil, authority{}, []given{otherRoot}, first, "not trusted when authority a began to sign", stood},
		{"until the new one has stood for long enough", nil, authority{}, []given{otherRoot}, otherRoot, "", stood},
		{"and kept against one of a third", accepted{threeRoots}, authority{}, []given{thirdRoot}, otherRoot, "not trusted when authority a began to sign", nil},
		{"the authority of that root signs", nil, authority{name: "c", trustDomain: "old"}, []given{thirdRoot}, thirdRoot, "", nil},
	}
	for _, step := range steps {
		must(t, i.hear(step.told))
		if step.signs.name != "" {
			i.note(step.signs)
		}
		if step.passes != nil {
			step.passes()
		}
		if err := i.take(step.answer); (err != nil) != (step.fails != "") || err != nil && !strings.Contains(err.Error(), step.fails) {
			t.Fatalf("%s: got %v; want %q", step.reason, err, step.fails)
		}
		if !i.has.equal(step.want) {
			t.Fatalf("%s: it has that of %s", step.reason, i.has.id)
		}
		secret, err := os.ReadFile(files.Certificate)
		must(t, err)
		if block, _ := pem.Decode(step.want.chain); !strings.Contains(string(secret), firstLine(string(pem.EncodeToMemory(block)))) {
			t.Errorf("%s: Envoy's file has another certificate", step.reason)
		}
	}
}

// firstLine returns the first line of a certificate that is its own.
func firstLine(text string) string { return strings.Split(text, "\n")[3] }
