package identity

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/outrigger-mesh/outrigger/internal/mesh"
	"github.com/outrigger-mesh/outrigger/internal/signing"
)

// An Issuer turns a request into a certificate. Whether the caller may have it
// is decided before. It is safe for concurrent use.
type Issuer interface {
	// Issue returns the chain for the key of the request, leaf first and without
	// the root. The request names what the template does.
	Issue(ctx context.Context, request *x509.CertificateRequest, t Template) ([]*x509.Certificate, error)
	// Roots returns the roots that chains lead to, never none.
	Roots() []*x509.Certificate
}

// A Template is what a leaf must say.
type Template struct {
	URIs     []*url.URL
	DNSNames []string
	// PodUID becomes the serial number of the subject; empty for outriggerd.
	PodUID string
	// MayNameNoPod says that the issuer may leave PodUID out, as those do that make
	// subjects by rules of their own. The pod's address then has to tell it apart.
	MayNameNoPod bool
	Lifetime     time.Duration
}

func newTemplate(id mesh.Identity, trustDomain, podUID string, lifetime time.Duration) Template {
	uris, names := signing.Names(id, trustDomain)
	return Template{URIs: uris, DNSNames: names, PodUID: podUID, Lifetime: lifetime}
}

// issue asks an issuer, and checks that the answer is what was asked for: an
// external issuer follows rules of its own. It returns the chain that was
// verified, leaf first and without the root, and nothing else that came with it.
func issue(ctx context.Context, issuer Issuer, request *x509.CertificateRequest, t Template) ([]*x509.Certificate, error) {
	answer, err := issuer.Issue(ctx, request, t)
	if err != nil {
		return nil, fmt.Errorf("have %s issued: %w", t.URIs[0], err)
	}
	chain, err := checkChain(answer, request, t, issuer.Roots())
	if err != nil {
		return nil, fmt.Errorf("check the certificate of %s: %w", t.URIs[0], err)
	}
	return chain, nil
}

func checkChain(answer []*x509.Certificate, request *x509.CertificateRequest, t Template, roots []*x509.Certificate) ([]*x509.Certificate, error) {
	if len(answer) == 0 {
		return nil, errors.New("the issuer returned none")
	}
	leaf := answer[0]
	if err := checkLeaf(leaf, request, t); err != nil {
		return nil, err
	}
	options := x509.VerifyOptions{Roots: pool(roots), Intermediates: pool(answer[1:])}
	var chain []*x509.Certificate
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth} {
		options.KeyUsages = []x509.ExtKeyUsage{usage}
		chains, err := leaf.Verify(options)
		if err != nil {
			return nil, err
		}
		chain = chains[0]
	}
	return chain[:len(chain)-1], nil
}

// checkLeaf checks everything about a leaf but who signed it.
func checkLeaf(leaf *x509.Certificate, request *x509.CertificateRequest, t Template) error {
	key, ok := leaf.PublicKey.(*ecdsa.PublicKey)
	if !ok || !key.Equal(request.PublicKey) {
		return errors.New("it is for another key")
	}
	if leaf.IsCA || leaf.KeyUsage&x509.KeyUsageCertSign != 0 {
		return errors.New("it may sign others")
	}
	if leaf.KeyUsage != 0 && leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0 {
		return errors.New("its key usage does not allow digital signature, which TLS needs")
	}
	if err := onlyTLS(leaf); err != nil {
		return err
	}
	if pod := leaf.Subject.SerialNumber; pod != t.PodUID && (pod != "" || !t.MayNameNoPod) {
		return fmt.Errorf("its subject has the serial number %q; want %q", leaf.Subject.SerialNumber, t.PodUID)
	}
	if err := checkExtension(leaf.Extensions, t); err != nil {
		return err
	}
	if end := leaf.NotBefore.Add(t.Lifetime + 2*backdate); leaf.NotAfter.After(end) {
		return fmt.Errorf("it is valid until %s, longer than %s", leaf.NotAfter.Format(time.RFC3339), t.Lifetime)
	}
	return nil
}

// onlyTLS checks that a leaf has no extended key usage besides those of TLS. That it has
// these is seen when it is verified.
func onlyTLS(leaf *x509.Certificate) error {
	var more []string
	for _, usage := range leaf.ExtKeyUsage {
		if usage != x509.ExtKeyUsageClientAuth && usage != x509.ExtKeyUsageServerAuth {
			more = append(more, usage.String())
		}
	}
	for _, usage := range leaf.UnknownExtKeyUsage {
		more = append(more, usage.String())
	}
	if len(more) > 0 {
		return fmt.Errorf("its extended key usages have [%s]; only client and server authentication are allowed", strings.Join(more, " "))
	}
	return nil
}

func pool(certificates []*x509.Certificate) *x509.CertPool {
	p := x509.NewCertPool()
	for _, c := range certificates {
		p.AddCert(c)
	}
	return p
}

func raw(certificates []*x509.Certificate) [][]byte {
	der := make([][]byte, len(certificates))
	for i, c := range certificates {
		der[i] = slices.Clone(c.Raw)
	}
	return der
}
