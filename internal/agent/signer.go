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
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

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
	key, chain []byte   // PEM
	roots      [][]byte // DER
	notAfter   time.Time
}

// sign makes a key and has it signed by an outriggerd that the roots vouch for.
func (s signer) sign(ctx context.Context, trusted roots) (*signed, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, s.request(), key)
	if err != nil {
		return nil, fmt.Errorf("make a certificate request: %w", err)
	}
	// A connection for each request: they are hours apart.
	conn, err := grpc.NewClient("passthrough:///"+s.settings.ControlPlane,
		grpc.WithTransportCredentials(credentials.NewTLS(s.tls(trusted))),
		grpc.WithPerRPCCredentials(token(s.tokenFile)),
		grpc.WithNoProxy(), // the user's proxy settings are the application's
		grpc.WithDisableServiceConfig(),
		// Nobody there is found out long before an issuer that is slow.
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: grpcbackoff.DefaultConfig, MinConnectTimeout: connectTimeout}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: connectTimeout, Timeout: connectTimeout}),
	)
	if err != nil {
		return nil, fmt.Errorf("prepare the connection to %s: %w", s.settings.ControlPlane, err)
	}
	defer func() { _ = conn.Close() }()
	response, err := signing.NewCertificatesClient(conn).Sign(ctx, &signing.SignRequest{Csr: csr})
	if err != nil {
		return nil, fmt.Errorf("have the key signed by %s: %w", s.settings.ControlPlane, err)
	}
	result, err := s.check(response, key, trusted)
	if err != nil {
		return nil, fmt.Errorf("check what %s signed: %w", s.settings.ControlPlane, err)
	}
	return result, nil
}

// request names exactly what the identity has; outriggerd refuses anything else.
func (s signer) request() *x509.CertificateRequest {
	uris, names := signing.Names(s.identity(), s.settings.TrustDomain)
	return &x509.CertificateRequest{
		Subject:  pkix.Name{SerialNumber: s.node.UID},
		URIs:     uris,
		DNSNames: names,
	}
}

// tls verifies outriggerd by its SPIFFE ID. A DNS name would be worth what the
// cluster's DNS is worth.
func (s signer) tls(trusted roots) *tls.Config {
	config := &tls.Config{
		MinVersion:         tls.VersionTLS13,
		InsecureSkipVerify: true, //nolint:gosec // VerifyConnection verifies, by URI SAN
		VerifyConnection: func(state tls.ConnectionState) error {
			return verifyServer(state.PeerCertificates, trusted, s.settings.ControlPlaneID)
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

func verifyServer(chain []*x509.Certificate, trusted roots, id string) error {
	if len(chain) == 0 {
		return errors.New("outriggerd presents no certificate")
	}
	if err := trusted.verify(chain, x509.ExtKeyUsageServerAuth); err != nil {
		return fmt.Errorf("verify outriggerd: %w", err)
	}
	if uris := chain[0].URIs; len(uris) != 1 || uris[0].String() != id {
		return fmt.Errorf("verify outriggerd: its certificate is for %v; want exactly %s", uris, id)
	}
	return nil
}

// check makes sure that Envoy can use what came back: our key, our names, and a
// chain that others will accept.
func (s signer) check(response *signing.SignResponse, key *ecdsa.PrivateKey, trusted roots) (*signed, error) {
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
	leaf, want := chain[0], s.request()
	if !key.PublicKey.Equal(leaf.PublicKey) {
		return nil, errors.New("the certificate is for another key")
	}
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != want.URIs[0].String() || !slices.Equal(leaf.DNSNames, want.DNSNames) {
		return nil, fmt.Errorf("the certificate is for %v %v; want %v %v", leaf.URIs, leaf.DNSNames, want.URIs, want.DNSNames)
	}
	all, err := parseRoots(nil, append(response.GetRoots(), trusted...))
	if err != nil {
		return nil, fmt.Errorf("parse the roots: %w", err)
	}
	if err := all.verify(chain, x509.ExtKeyUsageClientAuth); err != nil {
		return nil, err
	}
	keyText, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	return &signed{key: keyText, chain: text.Bytes(), roots: response.GetRoots(), notAfter: end(chain)}, nil
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
		return nil, errors.New("there is no certificate in it")
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
