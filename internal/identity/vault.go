package identity

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"google.golang.org/grpc/codes"

	"github.com/outrigger-mesh/outrigger/internal/rotation"
	"github.com/outrigger-mesh/outrigger/internal/vault"
)

const (
	blockRequest = "CERTIFICATE REQUEST"
	// soonestRenewal of Vault's token bounds how often a short-lived one is renewed.
	soonestRenewal = time.Second
)

// A VaultConfig says how to use an authority of kind Vault.
type VaultConfig struct {
	// Authority is its name in the mesh.
	Authority string
	Vault     rotation.Vault
	// TokenFile holds outriggerd's service account token for the Kubernetes login.
	TokenFile string
	// Known says what the mesh's state has recorded of the authority.
	Known Known
}

// A Vault is the issuer that has a PKI engine of a Vault server sign. The role's
// answer is checked by issue, as that of any other. It is safe for concurrent use.
type Vault struct {
	home  Home
	cfg   VaultConfig
	roots []*x509.Certificate
	queue *queue
	login *vaultLogin

	mu     sync.Mutex
	client *vault.Client
	ca     string // what client trusts
	warned string // Vault's last warnings
	log    logr.Logger
}

// OpenVault returns the issuer. Once the authority's roots are given or recorded it
// needs no answer from Vault, so that a mesh whose Vault is gone for good can be
// moved to another authority.
func OpenVault(ctx context.Context, home Home, cfg VaultConfig) (*Vault, error) {
	v := &Vault{home: home, cfg: cfg, queue: newQueue(issuerSlots, issuerQueue), log: logr.Discard()}
	v.login = &vaultLogin{cfg: cfg, turn: make(chan struct{}, 1), readSecret: v.secretEntry}
	if _, err := v.connect(ctx); err != nil {
		return nil, err
	}
	var err error
	switch {
	case cfg.Vault.Roots != "":
		v.roots, err = onlyRoots([]byte(cfg.Vault.Roots))
	case len(cfg.Known.Roots) > 0:
		v.roots = cfg.Known.Roots
	case cfg.Known.Fresh: // an authority of that name may have been another one once
		v.roots, err = v.askRoots(ctx)
	default:
		v.roots, err = home.pinned(ctx, cfg.Authority, v.askRoots)
	}
	if err != nil {
		return nil, fmt.Errorf("get the roots of %s: %w", cfg.Authority, err)
	}
	return v, nil
}

// Roots returns the roots that are given or recorded.
func (v *Vault) Roots() []*x509.Certificate { return slices.Clone(v.roots) }

// askRoots returns the roots that the PKI engine knows of.
func (v *Vault) askRoots(ctx context.Context) ([]*x509.Certificate, error) {
	text, err := v.current().Chain(ctx, v.cfg.Vault.Mount)
	if err != nil {
		return nil, err
	}
	chain, err := parseCertificates([]byte(text))
	if err != nil {
		return nil, fmt.Errorf("read ca_chain of the PKI engine at %s: %w", v.cfg.Vault.Mount, err)
	}
	chain = slices.DeleteFunc(chain, func(c *x509.Certificate) bool { return !isRoot(c) })
	if len(chain) == 0 {
		return nil, fmt.Errorf("ca_chain of the PKI engine at %s ends before the root; give the roots in vault.roots, or import the root's certificate into the engine", v.cfg.Vault.Mount)
	}
	return chain, nil
}

// Issue has the role sign the request. The error is a *signing.Refusal where Vault
// is asked too much.
func (v *Vault) Issue(ctx context.Context, request *x509.CertificateRequest, t Template) ([]*x509.Certificate, error) {
	leave, err := v.queue.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	signed, err := v.sign(ctx, request, t)
	if err != nil {
		return nil, v.refusal(err)
	}
	v.warn(signed.Warnings)
	chain, err := parseCertificates([]byte(signed.Certificate + "\n" + strings.Join(signed.Chain, "\n")))
	if err != nil {
		return nil, fmt.Errorf("read the answer of role %s of the PKI engine at %s: %w", v.cfg.Vault.Role, v.cfg.Vault.Mount, err)
	}
	return chain, nil
}

// sign asks with the token of the moment, and once more with a new one where Vault
// says that it is not good any more, or with the CA of the moment where the server
// shows a certificate of another.
func (v *Vault) sign(ctx context.Context, request *x509.CertificateRequest, t Template) (vault.Signed, error) {
	r := vault.SignRequest{
		CSR:          string(pem.EncodeToMemory(&pem.Block{Type: blockRequest, Bytes: request.Raw})),
		SerialNumber: t.PodUID, DNSNames: t.DNSNames, TTL: t.Lifetime,
	}
	for _, uri := range t.URIs {
		r.URIs = append(r.URIs, uri.String())
	}
	ask := func(stale string) (string, vault.Signed, error) {
		client := v.current()
		token, err := v.login.token(ctx, client, stale)
		if err != nil {
			return "", vault.Signed{}, err
		}
		signed, err := client.Sign(ctx, token, v.cfg.Vault.Mount, v.cfg.Vault.Role, r)
		return token, signed, err
	}
	used, signed, err := ask("")
	if vault.DistrustsServer(err) {
		if changed, connectErr := v.connect(ctx); changed && connectErr == nil {
			v.login.forgive()
			used, signed, err = ask("")
		}
	}
	if answer, ok := errors.AsType[*vault.Error](err); ok && answer.Denied() && used != "" {
		_, again, againErr := ask(used)
		if errors.Is(againErr, errSameToken) {
			return signed, err // Vault's words about the call say more
		}
		return again, againErr
	}
	return signed, err
}

// refusal makes an error of Vault's what the caller should hear.
func (v *Vault) refusal(err error) error {
	if answer, ok := errors.AsType[*vault.Error](err); ok && answer.Busy() {
		refusal := refuse(codes.ResourceExhausted, ReasonBusy, "%w", err)
		refusal.RetryAfter = max(answer.RetryAfter, soonestReturn)
		return refusal
	}
	return err
}

// warn logs what Vault says it changed, such as a TTL that the role does not allow,
// once and not with each certificate.
func (v *Vault) warn(warnings []string) {
	text := strings.Join(warnings, "; ")
	v.mu.Lock()
	same := text == v.warned
	v.warned = text
	log := v.log
	v.mu.Unlock()
	if !same && text != "" {
		log.Info("Vault signed, and warns", "warning", text)
	}
}

func (v *Vault) current() *vault.Client {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.client
}

// connect makes a client that trusts the CA of the moment, and reports whether
// that is another one than before.
func (v *Vault) connect(ctx context.Context) (changed bool, err error) {
	ca := v.cfg.Vault.CABundle
	if v.cfg.Vault.CASecret != "" {
		if ca, err = v.secretEntry(ctx, v.cfg.Vault.CASecret, TrustKey); err != nil {
			return false, err
		}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.client != nil && ca == v.ca {
		return false, nil
	}
	next, err := vault.New(vault.Config{Address: v.cfg.Vault.Address, Namespace: v.cfg.Vault.Namespace, CA: []byte(ca)})
	if err != nil {
		return false, fmt.Errorf("prepare the connection to Vault: %w", err)
	}
	if v.client != nil {
		v.client.Close()
	}
	v.client, v.ca = next, ca
	return true, nil
}

// secretEntry returns an entry of a Secret. Errors never hold any of it.
func (v *Vault) secretEntry(ctx context.Context, name, entry string) (string, error) {
	data, err := v.home.readCA(ctx, name)
	if err != nil {
		return "", err
	}
	if len(data[entry]) == 0 {
		return "", fmt.Errorf("Secret %s/%s has no entry %s, which is required", v.home.Namespace, name, entry) //nolint:staticcheck // a kind
	}
	return string(data[entry]), nil
}

// Run keeps the token good and reads the Secrets again when they change, until ctx
// ends.
func (v *Vault) Run(ctx context.Context, log logr.Logger) error {
	v.mu.Lock()
	v.log = log
	v.mu.Unlock()
	reread := time.NewTicker(reload)
	defer reread.Stop()
	renew := time.NewTimer(0)
	defer renew.Stop()
	var told string
	tell := func(message string, err error) {
		if err != nil && ctx.Err() == nil && err.Error() != told { // once, not every minute
			log.Error(err, message)
			told = err.Error()
		}
	}
	for {
		select {
		case <-ctx.Done():
			v.current().Close()
			return nil
		case <-reread.C:
			changed, err := v.connect(ctx)
			tell("Vault's CA is not read; the one of before stays in use", err)
			if changed {
				log.Info("Vault's CA read again", "secret", v.cfg.Vault.CASecret)
			}
			if v.login.stale(ctx) {
				renew.Reset(0)
			}
		case <-renew.C:
			next, err := v.login.keep(ctx, v.current(), log)
			tell("Vault's token is not renewed", err)
			if err == nil {
				told = ""
			}
			renew.Reset(next)
		}
	}
}

// readTokenFile returns outriggerd's own token for Vault.
func readTokenFile(path string) (string, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("outriggerd has no token for Vault in %s; the chart mounts one where certificates.vault.kubernetes is set", path)
	}
	if err != nil {
		return "", fmt.Errorf("read outriggerd's token for Vault: %w", err)
	}
	return strings.TrimSpace(string(text)), nil
}
