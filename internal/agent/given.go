package agent

import (
	"bytes"
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"github.com/outrigger-mesh/outrigger/bootstrap"
	"github.com/outrigger-mesh/outrigger/internal/mesh"
)

// lookInterval is how often mounted certificate files, and roots for one that
// leads to none of the mesh's, are looked at. Whoever renews does so long before
// the end, but a pod that has just started waits for its first.
const lookInterval = 2 * time.Second

// A given is a certificate from somebody else than outriggerd, not yet checked.
type given struct{ key, chain []byte } // PEM

func (g given) equal(other given) bool {
	return bytes.Equal(g.key, other.key) && bytes.Equal(g.chain, other.chain)
}

// follow takes certificates from whom the pod names, until ctx ends. One that
// cannot be used changes nothing; it is tried again, because a root of it may be
// on its way.
func (i *identity) follow(ctx context.Context) error {
	source := i.fromFiles
	if i.signer.settings.Identity.WorkloadAPI != "" {
		source = i.fromWorkloadAPI
	}
	gifts := make(chan given)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		source(ctx, gifts)
	}()
	defer func() { <-ended }()
	trust := time.NewTicker(trustInterval)
	defer trust.Stop()
	again := time.NewTicker(lookInterval)
	defer again.Stop()
	poll := time.NewTimer(i.pollIn())
	defer poll.Stop()
	var pending *given
	var said string
	for {
		select {
		case <-ctx.Done():
			return nil
		case gift := <-gifts:
			pending, said = &gift, ""
		case <-again.C:
		case <-poll.C:
			i.look(ctx) // for what outriggerd trusts: somebody else signs
			poll.Reset(i.pollIn())
		case <-trust.C:
			if err := i.writeTrust(); err != nil {
				i.log.Error("trusted roots not refreshed", "error", err)
			}
		}
		if pending == nil {
			continue
		}
		if err := i.take(*pending); err == nil {
			pending = nil
		} else if text := err.Error(); text != said {
			said = text
			i.log.Warn("certificate not usable", "error", err)
		}
	}
}

// take checks a certificate and puts it where Envoy sees it.
func (i *identity) take(g given) error {
	trusted, err := i.trusted()
	if err != nil {
		return err
	}
	signed, err := i.signer.checkGiven(g, trusted)
	if err != nil {
		return err
	}
	if err := i.put(signed); err != nil {
		return err
	}
	i.log.Info("certificate taken", "notAfter", signed.notAfter.Format(time.RFC3339))
	return nil
}

// checkGiven makes sure that a certificate is what outriggerd would have signed,
// as far as that matters to others: for this identity alone, and below a root of
// the mesh.
func (s signer) checkGiven(g given, trusted accepted) (*signed, error) {
	pair, err := tls.X509KeyPair(g.chain, g.key) // also holds that they fit
	if err != nil {
		return nil, fmt.Errorf("read certificate and key: %w", err)
	}
	chain := make([]*x509.Certificate, len(pair.Certificate))
	for n, der := range pair.Certificate {
		if chain[n], err = x509.ParseCertificate(der); err != nil {
			return nil, fmt.Errorf("read the chain: %w", err)
		}
	}
	leaf, want := chain[0], s.identity().URI(s.settings.TrustDomain)
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != want {
		return nil, fmt.Errorf("the certificate is for %v; want exactly %s", leaf.URIs, want)
	}
	if leaf.IsCA {
		return nil, errors.New("the certificate may sign others")
	}
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth} {
		if err := trusted.verify(chain, usage); err != nil {
			return nil, fmt.Errorf("verify the certificate up to the mesh's roots: %w", err)
		}
	}
	// Written anew, so that nothing else that came with them reaches Envoy.
	key, err := encodeKey(pair.PrivateKey)
	if err != nil {
		return nil, err
	}
	return &signed{key: key, chain: roots(pair.Certificate).pem(), notAfter: end(chain)}, nil
}

func encodeKey(key crypto.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode the key: %w", err)
	}
	var text bytes.Buffer
	encode(&text, "PRIVATE KEY", der)
	return text.Bytes(), nil
}

// identity is the pod's own.
func (s signer) identity() mesh.Identity {
	return mesh.Identity{Namespace: s.node.Namespace, ServiceAccount: s.node.ServiceAccount}
}

// fromFiles sends what is in the mounted files whenever it is something else.
func (i *identity) fromFiles(ctx context.Context, gifts chan<- given) {
	tick := time.NewTicker(lookInterval)
	defer tick.Stop()
	var last given
	var said string
	for {
		now, err := readFiles(i.identityDir)
		switch {
		case err != nil && err.Error() != said:
			said = err.Error() // once: the first look is often too early
			i.log.Warn("no certificate", "error", err)
		case err == nil && !now.equal(last):
			last, said = now, ""
			select {
			case gifts <- now:
			case <-ctx.Done():
				return
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func readFiles(dir string) (given, error) {
	chain, chainErr := os.ReadFile(filepath.Join(dir, bootstrap.IdentityChain))
	key, keyErr := os.ReadFile(filepath.Join(dir, bootstrap.IdentityKey))
	return given{key: key, chain: chain}, errors.Join(chainErr, keyErr)
}

// fromWorkloadAPI sends the certificates that a SPIFFE Workload API has for the
// pod, each as it comes.
func (i *identity) fromWorkloadAPI(ctx context.Context, gifts chan<- given) {
	for failures := 1; ; failures++ {
		err := i.listen(ctx, gifts, func() { failures = 0 })
		if ctx.Err() != nil {
			return
		}
		wait := backoff(max(1, failures))
		i.log.Warn("the Workload API does not answer", "error", err, "retryIn", wait.Round(time.Millisecond).String())
		retry := time.NewTimer(wait)
		select {
		case <-retry.C:
		case <-ctx.Done():
			retry.Stop()
			return
		}
	}
}

// listen holds one conversation with the Workload API, until it ends. It calls
// answered for each answer.
func (i *identity) listen(ctx context.Context, gifts chan<- given, answered func()) error {
	conn, err := grpc.NewClient("unix://"+filepath.Join(i.identityDir, i.signer.settings.Identity.WorkloadAPI),
		grpc.WithTransportCredentials(insecure.NewCredentials()), // the kernel says who is calling
		grpc.WithNoProxy(), grpc.WithDisableServiceConfig())
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	// Without this header the API refuses, so that no browser can be made to ask.
	stream, err := workload.NewSpiffeWorkloadAPIClient(conn).FetchX509SVID(
		metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", "true"), &workload.X509SVIDRequest{})
	if err != nil {
		return err
	}
	for {
		answer, err := stream.Recv()
		if err != nil {
			return err
		}
		answered()
		gift, err := i.signer.choose(answer.GetSvids())
		if err != nil {
			i.log.Warn("certificate not usable", "error", err)
			continue
		}
		select {
		case gifts <- gift:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// choose returns the certificate for the pod's own identity; a workload may have
// several.
func (s signer) choose(svids []*workload.X509SVID) (given, error) {
	want := s.identity().URI(s.settings.TrustDomain)
	n := slices.IndexFunc(svids, func(svid *workload.X509SVID) bool { return svid.GetSpiffeId() == want })
	if n < 0 {
		var have []string
		for _, svid := range svids {
			have = append(have, svid.GetSpiffeId())
		}
		return given{}, fmt.Errorf("the Workload API has certificates for [%s]; want one for %s", strings.Join(have, " "), want)
	}
	chain, err := x509.ParseCertificates(svids[n].GetX509Svid())
	if err != nil {
		return given{}, fmt.Errorf("read the chain of %s: %w", want, err)
	}
	var g given
	for _, c := range chain {
		g.chain = append(g.chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	g.key = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: svids[n].GetX509SvidKey()})
	return g, nil
}
