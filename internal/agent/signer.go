package agent

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	grpcbackoff "google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"github.com/outrigger-mesh/outrigger/bootstrap"
	"github.com/outrigger-mesh/outrigger/internal/signing"
)

// connectTimeout bounds how long outriggerd may take to answer at all.
const connectTimeout = 10 * time.Second

// A signer asks outriggerd for certificates of one workload.
type signer struct {
	settings  bootstrap.Settings
	node      bootstrap.Node
	tokenFile string
}

// A signed is a new key and what was signed for it. The key is nowhere else.
type signed struct {
	key, chain []byte // PEM
	notAfter   time.Time
	by         authority
	trusted    accepted // what outriggerd trusts
}

// An authority is who signs, as far as that tells whether to renew.
type authority struct{ name, generation, trustDomain string }

func authorityOf(a *signing.Authority) authority {
	return authority{name: a.GetName(), generation: a.GetGeneration(), trustDomain: a.GetTrustDomain()}
}

// sign makes a key and has it signed by an outriggerd that the roots vouch for, in
// the trust domain for which that signs.
func (s signer) sign(ctx context.Context, trusted accepted) (*signed, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	conn, err := s.connect(trusted)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	client := signing.NewCertificatesClient(conn)
	domain, err := s.domain(ctx, client)
	if err != nil {
		return nil, fmt.Errorf("ask %s who signs: %w", s.settings.ControlPlane, err)
	}
	want := s.request(domain)
	csr, err := x509.CreateCertificateRequest(rand.Reader, want, key)
	if err != nil {
		return nil, fmt.Errorf("make a certificate request: %w", err)
	}
	response, err := client.Sign(ctx, &signing.SignRequest{Csr: csr}, grpc.PerRPCCredentials(token(s.tokenFile)))
	if err != nil {
		return nil, fmt.Errorf("have the key signed by %s: %w", s.settings.ControlPlane, err)
	}
	result, err := s.check(response, key, want, trusted)
	if err != nil {
		return nil, fmt.Errorf("check what %s signed: %w", s.settings.ControlPlane, err)
	}
	return result, nil
}

// domain returns the trust domain of which certificates are signed now. An
// outriggerd that does not know the question signs for the pod's own.
func (s signer) domain(ctx context.Context, client signing.CertificatesClient) (string, error) {
	now, err := client.Current(ctx, &signing.CurrentRequest{})
	if status.Code(err) == codes.Unimplemented {
		return s.settings.TrustDomain, nil
	}
	if err != nil {
		return "", err
	}
	domain := now.GetAuthority().GetTrustDomain()
	told := func(d *signing.TrustDomain) bool { return d.GetName() == domain && len(d.GetRoots()) > 0 }
	if !slices.ContainsFunc(now.GetTrusted(), told) {
		return "", fmt.Errorf("it signs for trust domain %q, and has no roots for that", domain)
	}
	return domain, nil
}

// current asks who signs and what is trusted. It needs no token, and sends none.
func (s signer) current(ctx context.Context, trusted accepted) (authority, accepted, error) {
	conn, err := s.connect(trusted)
	if err != nil {
		return authority{}, nil, err
	}
	defer func() { _ = conn.Close() }()
	now, err := signing.NewCertificatesClient(conn).Current(ctx, &signing.CurrentRequest{})
	if err != nil {
		return authority{}, nil, fmt.Errorf("ask %s who signs: %w", s.settings.ControlPlane, err)
	}
	told, err := readAccepted(now.GetTrusted())
	return authorityOf(now.GetAuthority()), told, err
}

// connect prepares a connection. There is one for each use, so that outriggerd has
// no more of them than it has agents that are asking.
func (s signer) connect(trusted accepted) (*grpc.ClientConn, error) {
	conn, err := grpc.NewClient("passthrough:///"+s.settings.ControlPlane,
		grpc.WithTransportCredentials(credentials.NewTLS(s.tls(trusted))),
		grpc.WithNoProxy(), // the user's proxy settings are the application's
		grpc.WithDisableServiceConfig(),
		// Nobody there is found out long before an issuer that is slow.
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: grpcbackoff.DefaultConfig, MinConnectTimeout: connectTimeout}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: connectTimeout, Timeout: connectTimeout}),
	)
	if err != nil {
		return nil, fmt.Errorf("prepare the connection to %s: %w", s.settings.ControlPlane, err)
	}
	return conn, nil
}

// request names exactly what the identity has; outriggerd refuses anything else.
func (s signer) request(trustDomain string) *x509.CertificateRequest {
	uris, names := signing.Names(s.identity(), trustDomain)
	return &x509.CertificateRequest{
		Subject:  pkix.Name{SerialNumber: s.node.UID},
		URIs:     uris,
		DNSNames: names,
	}
}

// tls verifies outriggerd by its SPIFFE ID. A DNS name would be worth what the
// cluster's DNS is worth.
func (s signer) tls(trusted accepted) *tls.Config {
	config := &tls.Config{
		MinVersion:         tls.VersionTLS13,
		InsecureSkipVerify: true, //nolint:gosec // VerifyConnection verifies, by URI SAN
		VerifyConnection: func(state tls.ConnectionState) error {
			return s.verifyServer(state.PeerCertificates, trusted)
		},
	}
	if host, _, _ := strings.Cut(s.settings.ControlPlane, ":"); !isAddress(s.settings.ControlPlane) {
		config.ServerName = host
	}
	return config
}

func isAddress(hostPort string) bool {
	_, err := netip.ParseAddrPort(hostPort)
	return err == nil
}

func (s signer) verifyServer(chain []*x509.Certificate, trusted accepted) error {
	if len(chain) == 0 {
		return errors.New("outriggerd presents no certificate")
	}
	if err := trusted.verify(chain, x509.ExtKeyUsageServerAuth); err != nil {
		return fmt.Errorf("verify outriggerd: %w", err)
	}
	uri := chain[0].URIs[0]
	if id := s.settings.ControlPlaneIDIn(uri.Host); uri.String() != id {
		return fmt.Errorf("verify outriggerd: its certificate is for %s; want exactly %s", uri, id)
	}
	return nil
}

// check makes sure that Envoy can use what came back: our key, our names, and a
// chain that others will accept.
func (s signer) check(response *signing.SignResponse, key *ecdsa.PrivateKey, want *x509.CertificateRequest, trusted accepted) (*signed, error) {
	var chain []*x509.Certificate
	var text bytes.Buffer
	for _, der := range response.GetChain() {
		certificate, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("parse the chain: %w", err)
		}
		chain = append(chain, certificate)
		encode(&text, "CERTIFICATE", der)
	}
	if len(chain) == 0 {
		return nil, errors.New("there is no certificate")
	}
	leaf := chain[0]
	if !key.PublicKey.Equal(leaf.PublicKey) {
		return nil, errors.New("the certificate is for another key")
	}
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != want.URIs[0].String() || !slices.Equal(leaf.DNSNames, want.DNSNames) {
		return nil, fmt.Errorf("the certificate is for %v %v; want %v %v", leaf.URIs, leaf.DNSNames, want.URIs, want.DNSNames)
	}
	domain := want.URIs[0].Host
	told := response.GetTrusted()
	if len(told) == 0 { // an outriggerd that knows one trust domain only
		told = []*signing.TrustDomain{{Name: domain, Roots: response.GetRoots()}}
	}
	now, err := readAccepted(told)
	if err != nil {
		return nil, fmt.Errorf("parse the roots: %w", err)
	}
	if err := append(slices.Clone(now.roots(domain)), trusted.roots(domain)...).verify(chain, x509.ExtKeyUsageClientAuth); err != nil {
		return nil, err
	}
	keyText, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	return &signed{key: keyText, chain: text.Bytes(), notAfter: end(chain), by: authorityOf(response.GetAuthority()), trusted: now}, nil
}

// end is when a chain ends: it is worth nothing without each of its certificates.
func end(chain []*x509.Certificate) time.Time {
	first := slices.MinFunc(chain, func(a, b *x509.Certificate) int { return a.NotAfter.Compare(b.NotAfter) })
	return first.NotAfter
}

// A token is the path of a service account token, which the kubelet replaces
// while the pod runs.
type token string

// GetRequestMetadata sends the token as it is at this moment.
func (t token) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	text, err := os.ReadFile(string(t))
	if err != nil {
		return nil, fmt.Errorf("read the token: %w", err)
	}
	return map[string]string{"authorization": "Bearer " + strings.TrimSpace(string(text))}, nil
}

// RequireTransportSecurity keeps the token off connections without TLS.
func (t token) RequireTransportSecurity() bool { return true }

// roots are certificates, DER, each once.
type roots [][]byte

var errNoRoots = errors.New("there is no certificate in it")

// parseRoots joins roots in PEM with others in DER. What is not a certificate is
// an error, and so is none at all.
func parseRoots(text []byte, der [][]byte) (roots, error) {
	var all roots
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		all = append(all, block.Bytes)
	}
	all = append(all, der...)
	slices.SortFunc(all, bytes.Compare)
	all = slices.CompactFunc(all, bytes.Equal)
	for _, root := range all {
		if _, err := x509.ParseCertificate(root); err != nil {
			return nil, fmt.Errorf("parse a root: %w", err)
		}
	}
	if len(all) == 0 {
		return nil, errNoRoots
	}
	return all, nil
}

func (r roots) pem() []byte {
	var text bytes.Buffer
	for _, der := range r {
		encode(&text, "CERTIFICATE", der)
	}
	return text.Bytes()
}

// verify checks a chain, leaf first, up to one of the roots.
func (r roots) verify(chain []*x509.Certificate, usage x509.ExtKeyUsage) error {
	options := x509.VerifyOptions{
		Roots:         x509.NewCertPool(),
		Intermediates: x509.NewCertPool(),
		KeyUsages:     []x509.ExtKeyUsage{usage},
	}
	for _, der := range r {
		root, err := x509.ParseCertificate(der)
		if err != nil {
			return err
		}
		options.Roots.AddCert(root)
	}
	for _, c := range chain[1:] {
		options.Intermediates.AddCert(c)
	}
	_, err := chain[0].Verify(options)
	return err
}

// encode writes to memory, which does not fail.
func encode(text *bytes.Buffer, kind string, der []byte) {
	text.Write(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}
