//go:build integration

package identity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/go-logr/logr/funcr"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/outrigger-mesh/outrigger/e2e/cluster/local"
	"github.com/outrigger-mesh/outrigger/internal/rotation"
	"github.com/outrigger-mesh/outrigger/internal/signing"
)

const (
	vaultMount = "pki/mesh" // not the usual one, and not a single word
	vaultRole  = "mesh"
)

// A vaultTest is a mesh whose certificates a real Vault signs.
type vaultTest struct {
	server *local.Vault
	home   Home
	config VaultConfig

	mu      sync.Mutex
	said    strings.Builder // logs and errors
	secrets []string
}

// newVaultTest starts Vault with the documented role, and a mesh of that name
// which has the rights that the chart gives it, and a token.
func newVaultTest(t *testing.T, name string, change, token map[string]any) *vaultTest {
	t.Helper()
	server, err := local.StartVault(t.Context(), t.TempDir(), "127.0.0.1")
	must(t, err)
	t.Cleanup(server.Stop)
	return newVaultTestOf(t, name, server, change, token)
}

// newVaultTestOf is newVaultTest with a Vault that runs.
func newVaultTestOf(t *testing.T, name string, server *local.Vault, change, token map[string]any) *vaultTest {
	t.Helper()
	ctx := t.Context()
	must(t, server.MakePKI(ctx, vaultMount, vaultRole, trustDomain, change))
	home, _ := newHome(t, name, "certificates.issuer=vault", "certificates.vault.address="+server.Address, "certificates.vault.role="+vaultRole,
		"certificates.vault.token.secret=vault-token", "certificates.vault.token.key=token", "certificates.vault.caSecret=vault-ca")
	v := &vaultTest{server: server, home: home, config: VaultConfig{Authority: "vault", Vault: rotation.Vault{
		Address: server.Address, Mount: vaultMount, Role: vaultRole, CASecret: "vault-ca",
		Token: &rotation.SecretKey{Secret: "vault-token", Key: "token"},
	}}}
	v.secret(t, "vault-ca", TrustKey, string(server.CA))
	v.giveToken(t, token)
	t.Cleanup(func() { v.checkSecrets(t) })
	return v
}

// giveToken puts a new token into the Secret, and returns it.
func (v *vaultTest) giveToken(t *testing.T, settings map[string]any) string {
	t.Helper()
	token, err := v.server.MakeToken(t.Context(), vaultMount, vaultRole, settings)
	must(t, err)
	v.keepSecret(token)
	v.secret(t, "vault-token", "token", token+"\n") // as an editor leaves it
	return token
}

func (v *vaultTest) keepSecret(text string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.secrets = append(v.secrets, text)
}

// secret makes or replaces a Secret.
func (v *vaultTest) secret(t *testing.T, name, key, value string) {
	t.Helper()
	s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: v.home.Namespace, Name: name}, Data: map[string][]byte{key: []byte(value)}}
	err := admin(t).Create(t.Context(), s)
	if err != nil {
		err = admin(t).Update(t.Context(), s)
	}
	must(t, err)
}

// checkSecrets wants no token in any log or error of the test.
func (v *vaultTest) checkSecrets(t *testing.T) {
	t.Helper()
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, secret := range append(v.secrets, v.server.Token) {
		if strings.Contains(v.said.String(), secret) {
			t.Error("a token is in a log or an error")
		}
	}
}

func (v *vaultTest) say(text string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.said.WriteString(text + "\n")
}

func (v *vaultTest) saidSo(text string) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return strings.Contains(v.said.String(), text)
}

func (v *vaultTest) log() logr.Logger {
	return funcr.New(func(prefix, args string) { v.say(prefix + args) }, funcr.Options{Verbosity: 10})
}

func (v *vaultTest) open(t *testing.T) *Vault {
	t.Helper()
	issuer, err := OpenVault(t.Context(), v.home, v.config)
	must(t, err)
	return issuer
}

// run runs the issuer until the test ends.
func (v *vaultTest) run(t *testing.T, issuer *Vault) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- issuer.Run(ctx, v.log()) }()
	t.Cleanup(func() {
		stop()
		must(t, <-done)
	})
}

// issue has a pod's certificate issued, as Signer does.
func (v *vaultTest) issue(ctx context.Context, t *testing.T, issuer Issuer, lifetime time.Duration) ([]*x509.Certificate, error) {
	t.Helper()
	template := newTemplate(cart(), trustDomain, podUID, lifetime)
	request, err := parseRequest(csr(t, cart(), podUID, p256(t), nil))
	must(t, err)
	chain, err := issue(ctx, issuer, request, template)
	if err != nil {
		v.say(err.Error())
	}
	return chain, err
}

// refused wants a certificate not to be issued, and the error to have the words.
func (v *vaultTest) refused(t *testing.T, issuer Issuer, words ...string) {
	t.Helper()
	_, err := v.issue(t.Context(), t, issuer, time.Hour)
	if err == nil {
		t.Fatalf("it was issued; want an error with %q", words)
	}
	for _, want := range words {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("got error %v; want %q in it", err, want)
		}
	}
}

func (v *vaultTest) issued(t *testing.T, issuer Issuer) {
	t.Helper()
	_, err := v.issue(t.Context(), t, issuer, time.Hour)
	must(t, err)
}

func TestVaultSignsForAnyLifetime(t *testing.T) {
	v := newVaultTest(t, "vault-signs", nil, nil)
	issuer := v.open(t)
	for _, lifetime := range []time.Duration{10 * time.Minute, 90 * time.Second, 59*time.Minute + 59*time.Second, 24 * time.Hour} {
		chain, err := v.issue(t.Context(), t, issuer, lifetime)
		must(t, err)
		if got := time.Until(chain[0].NotAfter); got > lifetime || got < lifetime-10*time.Second {
			t.Errorf("asked for %s, got a certificate for %s", lifetime, got)
		}
		if got := chain[0].Subject.String(); got != "SERIALNUMBER="+podUID {
			t.Errorf("the subject is %s; want the pod's uid and nothing else", got)
		}
	}
	// outriggerd's own has no uid.
	_, request, template, err := ownRequest(v.home.Namespace, trustDomain, time.Hour)
	must(t, err)
	_, err = issue(t.Context(), issuer, request, template)
	must(t, err)
}

func TestVaultIsAskedInItsNamespace(t *testing.T) {
	v := newVaultTest(t, "vault-namespace", nil, nil)
	var mu sync.Mutex
	asked := map[string]bool{}
	target, err := url.Parse(v.server.Address)
	must(t, err)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(v.server.CA)
	forward := httputil.NewSingleHostReverseProxy(target)
	forward.Transport = &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}}
	front := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		asked[strings.TrimPrefix(r.URL.Path, "/v1/")+" in "+r.Header.Get("X-Vault-Namespace")] = true
		mu.Unlock()
		r.Header.Del("X-Vault-Namespace") // which only the enterprise edition has
		forward.ServeHTTP(w, r)
	}))
	t.Cleanup(front.Close)
	v.secret(t, "vault-ca", TrustKey, string(encodeCertificates(front.Certificate())))
	v.config.Vault.Address, v.config.Vault.Namespace = front.URL, "teams/mesh"
	issuer := v.open(t)
	v.issued(t, issuer)
	mu.Lock()
	defer mu.Unlock()
	for _, want := range []string{vaultMount + "/cert/ca_chain in teams/mesh", vaultMount + "/sign/" + vaultRole + " in teams/mesh"} {
		if !asked[want] {
			t.Errorf("Vault was asked %v; want %s", asked, want)
		}
	}
}

// TestVaultRoleThatChangesWhatIsAsked shows that whatever a role does to a
// certificate, a pod gets what it asked for or nothing.
func TestVaultRoleThatChangesWhatIsAsked(t *testing.T) {
	v := newVaultTest(t, "vault-role", nil, nil)
	issuer := v.open(t)
	cases := map[string]struct {
		reason string
		role   map[string]any
		say    string // empty: it is issued
	}{
		"as documented":     {role: nil},
		"names of the CSR":  {reason: "they are the same ones", role: map[string]any{"use_csr_sans": true, "use_csr_common_name": true}},
		"no such namespace": {role: map[string]any{"allowed_uri_sans": "spiffe://" + trustDomain + "/ns/other/sa/*"}, say: "URI"},
		"no DNS names":      {role: map[string]any{"allowed_domains": "", "allow_subdomains": false}, say: "not allowed by this role"},
		"no serial numbers": {role: map[string]any{"allowed_serial_numbers": ""}, say: "serial_number"},
		"no server":         {role: map[string]any{"server_flag": false}, say: "incompatible key usage"},
		"no client":         {role: map[string]any{"client_flag": false}, say: "incompatible key usage"},
		"no signature":      {role: map[string]any{"key_usage": "KeyAgreement"}, say: "digital signature"},
		"signs code too":    {role: map[string]any{"code_signing_flag": true}, say: "only client and server authentication are allowed"},
		"from long ago":     {role: map[string]any{"not_before_duration": "24h"}, say: "longer than"},
		"its own end":       {role: map[string]any{"not_after": "2035-01-01T00:00:00Z"}, say: "Either ttl or not_after"},
		"other keys":        {role: map[string]any{"key_type": "rsa", "key_bits": 2048}, say: "role requires keys of type rsa"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			must(t, v.server.MakeRole(t.Context(), vaultMount, vaultRole, trustDomain, tc.role))
			if tc.say == "" {
				v.issued(t, issuer)
				return
			}
			v.refused(t, issuer, tc.say)
		})
	}
	t.Run("shorter", func(t *testing.T) {
		must(t, v.server.MakeRole(t.Context(), vaultMount, vaultRole, trustDomain, map[string]any{"max_ttl": "5m"}))
		v.run(t, issuer)
		eventually(t, "Vault's warning in the log", func() error {
			chain, err := v.issue(t.Context(), t, issuer, time.Hour)
			if err != nil {
				return err
			}
			if got := time.Until(chain[0].NotAfter); got > 5*time.Minute || got < 4*time.Minute {
				return fmt.Errorf("got a certificate for %s; want 5 minutes", got)
			}
			if !v.saidSo("TTL") {
				return fmt.Errorf("nothing was logged")
			}
			return nil
		})
	})
}

func TestVaultThatIsNotThere(t *testing.T) {
	v := newVaultTest(t, "vault-wrong", nil, nil)
	cases := map[string]struct {
		change func(*rotation.Vault)
		say    []string
	}{
		"mount":  {func(c *rotation.Vault) { c.Mount = "pki/other" }, []string{"pki/other/sign/mesh", "403", "permission denied"}},
		"role":   {func(c *rotation.Vault) { c.Role = "other" }, []string{"pki/mesh/sign/other", "403", "permission denied"}},
		"server": {func(c *rotation.Vault) { c.Address = "https://127.0.0.1:1" }, []string{"connection refused"}},
		"its CA": {func(c *rotation.Vault) {
			c.CASecret = ""
			c.CABundle = string(encodeCertificates(v.open(t).Roots()...))
		}, []string{"certificate signed by unknown authority"}},
		"public CA": {func(c *rotation.Vault) { c.CASecret = "" }, []string{"certificate signed by unknown authority"}},
		"entry":     {func(c *rotation.Vault) { c.Token = &rotation.SecretKey{Secret: "vault-token", Key: "other"} }, []string{"Secret vault-wrong/vault-token has no entry other"}},
	}
	v.open(t) // records the roots
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			config := v.config
			tc.change(&config.Vault)
			issuer, err := OpenVault(t.Context(), v.home, config)
			must(t, err)
			v.refused(t, issuer, tc.say...)
		})
	}
	t.Run("policy allows a role that is not there", func(t *testing.T) {
		config := v.config
		config.Vault.Role = "gone"
		_, err := v.server.MakePolicy(t.Context(), vaultMount, "gone")
		must(t, err)
		v.giveToken(t, map[string]any{"policies": []string{"sign-gone"}})
		issuer, err := OpenVault(t.Context(), v.home, config)
		must(t, err)
		v.refused(t, issuer, "unknown role: gone")
	})
	t.Run("roots cannot be asked for", func(t *testing.T) {
		config := v.config
		config.Authority, config.Vault.Mount = "another", "pki/other"
		if _, err := OpenVault(t.Context(), v.home, config); err == nil || !strings.Contains(err.Error(), "GET pki/other/cert/ca_chain: Vault answered 403: permission denied") {
			t.Errorf("got error %v; want Vault's", err)
		}
	})
}

func TestVaultSealedRestartedUnsealed(t *testing.T) {
	v := newVaultTest(t, "vault-sealed", nil, nil)
	issuer := v.open(t)
	v.issued(t, issuer)
	must(t, v.server.Seal(t.Context()))
	v.refused(t, issuer, "503", "Vault is sealed")
	must(t, v.server.Unseal(t.Context()))
	v.issued(t, issuer)
	v.server.Stop()
	v.refused(t, issuer, "connection refused")
	if again := v.open(t); !again.Roots()[0].Equal(issuer.Roots()[0]) {
		t.Error("without Vault the recorded roots are others")
	}
	must(t, v.server.Start(t.Context()))
	v.refused(t, issuer, "Vault is sealed")
	must(t, v.server.Unseal(t.Context()))
	v.issued(t, issuer)
}

func TestVaultThatIsAskedTooOften(t *testing.T) {
	v := newVaultTest(t, "vault-quota", nil, nil)
	issuer := v.open(t)
	v.issued(t, issuer)
	_, err := v.server.Call(t.Context(), http.MethodPost, "sys/quotas/rate-limit/mesh", map[string]any{"path": vaultMount, "rate": 1, "interval": "30s"})
	must(t, err)
	var busy *signing.Refusal
	for busy == nil {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		_, err := v.issue(ctx, t, issuer, time.Hour)
		cancel()
		if err != nil {
			if busy, _ = errors.AsType[*signing.Refusal](err); busy == nil {
				t.Fatalf("got error %v; want a refusal", err)
			}
		}
	}
	if busy.Code != codes.ResourceExhausted || busy.Reason != ReasonBusy || !strings.Contains(busy.Error(), "rate limit quota exceeded") {
		t.Errorf("got %s %s; want that the issuer is busy, in Vault's words", busy.Code, busy)
	}
	if busy.RetryAfter < time.Second {
		t.Errorf("callers are to come back after %s", busy.RetryAfter)
	}
}

func TestVaultCAIsReplacedInItsSecret(t *testing.T) {
	v := newVaultTest(t, "vault-ca", nil, nil)
	v.open(t)
	v.secret(t, "vault-ca", TrustKey, string(encodeCertificates(v.open(t).Roots()...)))
	issuer := v.open(t)
	v.refused(t, issuer, "certificate signed by unknown authority")
	v.secret(t, "vault-ca", TrustKey, string(v.server.CA))
	v.issued(t, issuer) // at once
}

// TestVaultRootIsNeverChangedSilently shows that another root in Vault signs
// nothing for the mesh until people say so.
func TestVaultRootIsNeverChangedSilently(t *testing.T) {
	v := newVaultTest(t, "vault-root", nil, nil)
	issuer := v.open(t)
	before := issuer.Roots()
	answer, err := v.server.Call(t.Context(), http.MethodPost, vaultMount+"/root/rotate/internal", map[string]any{"common_name": "another root", "key_type": "ec", "issuer_name": "next"})
	must(t, err)
	_, err = v.server.Call(t.Context(), http.MethodPost, vaultMount+"/root/replace", map[string]any{"default": "next"})
	must(t, err)
	for range 2 {
		v.refused(t, issuer, "certificate signed by unknown authority")
		if got := issuer.Roots(); len(got) != 1 || !got[0].Equal(before[0]) {
			t.Error("the roots are others")
		}
		issuer = v.open(t)
	}
	// Another authority is asked anew; with given roots nobody is asked.
	v.config.Authority = "vault-2"
	v.issued(t, v.open(t))
	var made struct {
		Data struct {
			Certificate string `json:"certificate"`
		} `json:"data"`
	}
	must(t, json.Unmarshal(answer, &made))
	v.config.Authority, v.config.Vault.Roots = "vault", made.Data.Certificate
	v.issued(t, v.open(t))
	// So it is with one that people rotate to, and no more once its roots are recorded.
	v.config.Vault.Roots, v.config.Known = "", Known{Fresh: true}
	v.issued(t, v.open(t))
	v.config.Known = Known{Roots: before}
	v.refused(t, v.open(t), "certificate signed by unknown authority")
}

// TestVaultIntermediate shows that below an intermediate whose root the engine does
// not know, the roots must be given.
func TestVaultIntermediate(t *testing.T) {
	v := newVaultTest(t, "vault-below", nil, nil)
	ctx := t.Context()
	root := v.open(t).Roots()
	must(t, v.server.MakeIntermediate(ctx, vaultMount, "below"))
	must(t, v.server.MakeRole(ctx, "below", vaultRole, trustDomain, nil))
	v.config.Authority, v.config.Vault.Mount = "below", "below"
	v.giveToken(t, nil)
	_, err := v.server.MakePolicy(ctx, "below", vaultRole)
	must(t, err)
	if _, err := OpenVault(ctx, v.home, v.config); err == nil || !strings.Contains(err.Error(), "ends before the root") {
		t.Fatalf("got error %v; want that the root is missing", err)
	}
	v.config.Vault.Roots = string(encodeCertificates(root...))
	chain, err := v.issue(ctx, t, v.open(t), time.Hour)
	must(t, err)
	if len(chain) != 2 {
		t.Fatalf("the chain has %d certificates; want the leaf and the intermediate", len(chain))
	}
	// Envoy wants a chain to end at a root.
	v.config.Vault.Roots = string(encodeCertificates(chain[1]))
	if _, err := OpenVault(ctx, v.home, v.config); err == nil || !strings.Contains(err.Error(), "is not a root") {
		t.Errorf("got error %v; want that an intermediate is no root", err)
	}
}

// TestVaultManyAtOnce has more certificates issued at once than there are turns.
func TestVaultManyAtOnce(t *testing.T) {
	v := newVaultTest(t, "vault-many", nil, nil)
	issuer := v.open(t)
	var group errgroup.Group
	for range 100 {
		group.Go(func() error {
			_, err := v.issue(t.Context(), t, issuer, time.Hour)
			return err
		})
	}
	must(t, group.Wait())
}
