package rotation

import (
	"bytes"
	"cmp"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
)

// BuiltInSecret is the Secret of the mesh's own root where no other is named.
const BuiltInSecret = "outrigger-ca"

// OwnSecrets are the Secrets that the mesh makes roots in: each is made once and
// never changed, so a new root takes the next that there is not yet.
func OwnSecrets() []string {
	return []string{BuiltInSecret, BuiltInSecret + "-2", BuiltInSecret + "-3", BuiltInSecret + "-4"}
}

// An Authority is who may sign for a trust domain, and how outriggerd reaches it.
// Exactly one of the kinds is set. Objects that it names are in the system
// namespace.
type Authority struct {
	// Name tells authorities of a mesh apart. It is a DNS label.
	Name        string       `json:"name"`
	TrustDomain string       `json:"trustDomain"`
	BuiltIn     *BuiltIn     `json:"builtIn,omitempty"`
	CertManager *CertManager `json:"certManager,omitempty"`
	Vault       *Vault       `json:"vault,omitempty"`
}

// A BuiltIn authority signs in outriggerd itself.
type BuiltIn struct {
	// Secret holds the root, or an intermediate and its chain.
	Secret string `json:"secret"`
}

// A CertManager authority signs by CertificateRequests in the system namespace.
type CertManager struct {
	Issuer string `json:"issuer"`
	// Kind and Group of the issuer; Issuer and cert-manager.io where empty.
	Kind  string `json:"kind,omitempty"`
	Group string `json:"group,omitempty"`
	// The roots, of which at most one is set: a ConfigMap that holds them in ca.crt,
	// or the roots themselves, PEM.
	RootsConfigMap string `json:"rootsConfigMap,omitempty"`
	Roots          string `json:"roots,omitempty"`
}

// A Vault authority signs by the PKI engine of a Vault server. Exactly one of
// Token and Kubernetes is set.
type Vault struct {
	Address string `json:"address"`
	// Namespace is one of Vault's, which its enterprise edition has.
	Namespace string `json:"namespace,omitempty"`
	// Mount is the path of the PKI engine; pki where empty.
	Mount      string           `json:"mount,omitempty"`
	Role       string           `json:"role"`
	Token      *SecretKey       `json:"token,omitempty"`
	Kubernetes *VaultKubernetes `json:"kubernetes,omitempty"`
	// Who may have signed the server's own certificate, of which at most one is set:
	// a Secret that holds it in ca.crt, or the certificates themselves, PEM. Neither:
	// the authorities of the image.
	CASecret string `json:"caSecret,omitempty"`
	CABundle string `json:"caBundle,omitempty"`
	// Roots that certificates lead to, PEM. Empty: those that the PKI engine knows at
	// the first time, which are recorded.
	Roots string `json:"roots,omitempty"`
}

// A SecretKey is an entry of a Secret.
type SecretKey struct {
	Secret string `json:"secret"`
	Key    string `json:"key"`
}

// A VaultKubernetes is a login with outriggerd's service account.
type VaultKubernetes struct {
	Role string `json:"role"`
	// Mount is the path of the method; kubernetes where empty.
	Mount string `json:"mount,omitempty"`
	// Audience of the service account's token, which the chart mounts; vault where
	// empty.
	Audience string `json:"audience,omitempty"`
}

// Kind names which kind of authority it is, as in the chart's values.
func (a Authority) Kind() string {
	switch {
	case a.BuiltIn != nil:
		return "builtIn"
	case a.CertManager != nil:
		return "certManager"
	case a.Vault != nil:
		return "vault"
	default:
		return ""
	}
}

// String says which authority it is, in words for people.
func (a Authority) String() string {
	switch {
	case a.BuiltIn != nil:
		return fmt.Sprintf("%s (built-in CA in Secret %s, trust domain %s)", a.Name, a.BuiltIn.Secret, a.TrustDomain)
	case a.CertManager != nil:
		return fmt.Sprintf("%s (cert-manager's %s %s, trust domain %s)", a.Name, cmp.Or(a.CertManager.Kind, "Issuer"), a.CertManager.Issuer, a.TrustDomain)
	case a.Vault != nil:
		return fmt.Sprintf("%s (Vault %s, role %s, trust domain %s)", a.Name, a.Vault.Address, a.Vault.Role, a.TrustDomain)
	default:
		return a.Name
	}
}

// Secrets are the names of the Secrets that outriggerd must read for it.
func (a Authority) Secrets() []string {
	var names []string
	add := func(name string) {
		if name != "" {
			names = append(names, name)
		}
	}
	if a.BuiltIn != nil {
		add(a.BuiltIn.Secret)
	}
	if a.Vault != nil {
		if a.Vault.Token != nil {
			add(a.Vault.Token.Secret)
		}
		add(a.Vault.CASecret)
	}
	return names
}

// Same reports whether two authorities are one, whatever their names.
func (a Authority) Same(b Authority) bool {
	a.Name, b.Name = "", ""
	return bytes.Equal(a.JSON(), b.JSON())
}

// JSON returns the authority as ParseAuthority reads it.
func (a Authority) JSON() []byte {
	text, err := json.Marshal(a)
	if err != nil {
		panic(err) // strings alone
	}
	return text
}

// ParseAuthority reads an authority, fills in what may be left out, and checks it.
// Where it names no trust domain it has the given one. Unknown fields are an error.
func ParseAuthority(text []byte, trustDomain string) (Authority, error) {
	var a Authority
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&a); err != nil {
		return Authority{}, fmt.Errorf("read an authority: %w", err)
	}
	if decoder.More() {
		return Authority{}, errors.New("read an authority: more follows after it")
	}
	a = a.WithDefaults()
	a.TrustDomain = cmp.Or(a.TrustDomain, trustDomain)
	return a, a.Validate()
}

// WithDefaults returns the authority with what may be left out filled in. It
// shares nothing with the receiver.
func (a Authority) WithDefaults() Authority {
	if a.BuiltIn != nil {
		b := *a.BuiltIn
		b.Secret = cmp.Or(b.Secret, BuiltInSecret)
		a.BuiltIn, a.Name = &b, cmp.Or(a.Name, label(b.Secret))
	}
	if a.CertManager != nil {
		c := *a.CertManager
		c.Kind, c.Group = cmp.Or(c.Kind, "Issuer"), cmp.Or(c.Group, "cert-manager.io")
		a.CertManager, a.Name = &c, cmp.Or(a.Name, label("cert-manager-"+c.Issuer))
	}
	if a.Vault != nil {
		v := *a.Vault
		v.Mount = cmp.Or(v.Mount, "pki")
		if v.Kubernetes != nil {
			k := *v.Kubernetes
			k.Mount, k.Audience = cmp.Or(k.Mount, "kubernetes"), cmp.Or(k.Audience, "vault")
			v.Kubernetes = &k
		}
		if v.Token != nil {
			token := *v.Token
			v.Token = &token
		}
		a.Vault, a.Name = &v, cmp.Or(a.Name, label("vault-"+v.Role))
	}
	return a
}

// label makes a DNS label of a name.
func label(name string) string {
	name = strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' {
			return r
		}
		return '-'
	}, strings.ToLower(name))
	if len(name) > validation.DNS1123LabelMaxLength {
		name = name[:validation.DNS1123LabelMaxLength]
	}
	return strings.Trim(name, "-")
}

// Validate returns every fault of an authority, each with its field, its value and
// what is allowed.
func (a Authority) Validate() error {
	f := &faults{name: a.Name}
	f.label("name", a.Name)
	f.subdomain("trustDomain", a.TrustDomain)
	if _, err := netip.ParseAddr(a.TrustDomain); err == nil {
		f.add("trustDomain", a.TrustDomain, "an address is not allowed, because certificates cannot be constrained to it")
	}
	kinds := 0
	if a.BuiltIn != nil {
		kinds++
		f.subdomain("builtIn.secret", a.BuiltIn.Secret)
	}
	if a.CertManager != nil {
		kinds++
		a.CertManager.validate(f)
	}
	if a.Vault != nil {
		kinds++
		a.Vault.validate(f)
	}
	if kinds != 1 {
		f.errs = append(f.errs, fmt.Errorf("authority %s has %d of builtIn, certManager and vault; exactly one is allowed", a.Name, kinds))
	}
	return errors.Join(f.errs...)
}

func (c CertManager) validate(f *faults) {
	f.subdomain("certManager.issuer", c.Issuer)
	f.subdomain("certManager.group", c.Group)
	if c.Kind == "" || strings.ContainsAny(c.Kind, " /.") {
		f.add("certManager.kind", c.Kind, "the kind of an issuer, such as Issuer or ClusterIssuer, is allowed")
	}
	if c.RootsConfigMap != "" {
		f.subdomain("certManager.rootsConfigMap", c.RootsConfigMap)
	}
	f.certificates("certManager.roots", c.Roots)
	if c.Roots != "" && c.RootsConfigMap != "" {
		f.add("certManager.rootsConfigMap", c.RootsConfigMap, "nothing is allowed beside certManager.roots")
	}
}

func (v Vault) validate(f *faults) {
	address, err := url.Parse(v.Address)
	if err != nil || address.Host == "" || address.Scheme != "https" || address.User != nil || address.RawQuery != "" {
		f.add("vault.address", v.Address, "https://HOST:PORT is allowed, and no http, because a token is sent there")
	}
	f.path("vault.mount", v.Mount)
	f.path("vault.role", v.Role)
	if v.Namespace != "" {
		f.path("vault.namespace", v.Namespace)
	}
	if (v.Token == nil) == (v.Kubernetes == nil) {
		f.errs = append(f.errs, fmt.Errorf("authority %s has %d of vault.token and vault.kubernetes; exactly one is allowed", f.name, count(v.Token != nil, v.Kubernetes != nil)))
	}
	if v.Token != nil {
		f.subdomain("vault.token.secret", v.Token.Secret)
		if faults := validation.IsConfigMapKey(v.Token.Key); len(faults) > 0 {
			f.add("vault.token.key", v.Token.Key, strings.Join(faults, "; "))
		}
	}
	if v.Kubernetes != nil {
		f.path("vault.kubernetes.role", v.Kubernetes.Role)
		f.path("vault.kubernetes.mount", v.Kubernetes.Mount)
	}
	if v.CASecret != "" {
		f.subdomain("vault.caSecret", v.CASecret)
	}
	f.certificates("vault.caBundle", v.CABundle)
	f.certificates("vault.roots", v.Roots)
	if v.CASecret != "" && v.CABundle != "" {
		f.add("vault.caSecret", v.CASecret, "nothing is allowed beside vault.caBundle")
	}
}

func count(all ...bool) int {
	n := 0
	for _, b := range all {
		if b {
			n++
		}
	}
	return n
}

// faults gathers what is wrong with an authority.
type faults struct {
	name string
	errs []error
}

func (f *faults) add(field, value, allowed string) {
	f.errs = append(f.errs, fmt.Errorf("authority %s: %s is %q; %s", f.name, field, value, allowed))
}

func (f *faults) label(field, value string) {
	for _, fault := range validation.IsDNS1123Label(value) {
		f.add(field, value, fault)
	}
}

func (f *faults) subdomain(field, value string) {
	for _, fault := range validation.IsDNS1123Subdomain(value) {
		f.add(field, value, fault)
	}
}

// path checks part of an URL of Vault's.
func (f *faults) path(field, value string) {
	if value == "" || strings.Trim(value, "/") != value || strings.Contains(value, "..") || strings.ContainsAny(value, " ?#%\\") {
		f.add(field, value, "a path without slashes at its ends is allowed")
	}
}

// certificates checks that a text, unless it is empty, is PEM certificates and
// nothing else. Whether they parse is seen when they are used.
func (f *faults) certificates(field, text string) {
	rest := []byte(strings.TrimSpace(text))
	for len(rest) > 0 {
		block, after := pem.Decode(rest)
		if block == nil || block.Type != "CERTIFICATE" {
			f.errs = append(f.errs, fmt.Errorf("authority %s: %s holds something else than certificates in PEM, which alone are allowed", f.name, field))
			return
		}
		rest = bytes.TrimSpace(after)
	}
}
