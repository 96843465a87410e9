package agent

import (
	"bytes"
	"cmp"
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

const (
	// standing is how long outriggerd must have said the same of what is trusted for
	// certificates below a new root to be taken although no other authority signs. It
	// is longer than agents take to hear of it.
	standing = 2 * time.Minute
	// longestHandover bounds what handover returns, by how far clocks may be apart.
	longestHandover = 5 * time.Minute
)

// handover is how much time a certificate of a life must have left to be kept against
// one that came too early. Whoever it is shown to may have a clock that is ahead.
func handover(life time.Duration) time.Duration { return min(life/4, longestHandover) }

// A given is a certificate from somebody else than outriggerd, not yet checked.
type given struct {
	id         string // for whom it is said to be; empty where nothing is said
	key, chain []byte // PEM
}

func (g given) equal(other given) bool {
	return bytes.Equal(g.key, other.key) && bytes.Equal(g.chain, other.chain)
}

// follow takes certificates from whom the pod names, until ctx ends. An answer of
// which none can be used changes nothing; it is tried again, because a root may be
// on its way. The last one is looked at again when outriggerd accepts other trust
// domains, or signs for another one.
func (i *identity) follow(ctx context.Context) error {
	source := i.fromFiles
	if i.signer.settings.Identity.WorkloadAPI != "" {
		source = i.fromWorkloadAPI
	}
	answers := make(chan []given)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		source(ctx, answers)
	}()
	defer func() { <-ended }()
	trust := time.NewTicker(trustInterval)
	defer trust.Stop()
	again := time.NewTicker(lookInterval)
	defer again.Stop()
	poll := time.NewTimer(0) // what is accepted may be other than the pod was made with
	defer poll.Stop()
	var last []given // answer
	var open bool    // it is not settled what to take of it
	var said string
	for {
		select {
		case <-ctx.Done():
			return nil
		case last = <-answers:
			open, said = true, ""
		case <-again.C:
		case <-poll.C:
			told, signs := i.told, i.signs
			i.look(ctx)
			open = open || i.signs.trustDomain != signs.trustDomain || !i.told.equal(told)
			poll.Reset(i.pollIn())
		case <-trust.C:
			if err := i.writeTrust(); err != nil {
				i.log.Error("trusted roots not refreshed", "error", err)
			}
		}
		if !open || last == nil {
			continue
		}
		if err := i.take(last); err == nil {
			open, said = false, ""
			poll.Reset(i.pollIn()) // by the life of what it is now
		} else if text := err.Error(); text != said {
			said = text
			i.log.Warn("certificate not usable", "error", err)
		}
	}
}

// take puts the best certificate of an answer where Envoy sees it, unless it is there
// already, or too early.
func (i *identity) take(answer []given) error {
	trusted, err := i.trusted()
	if err != nil {
		return err
	}
	signs := cmp.Or(i.signs.trustDomain, i.by.trustDomain, i.signer.settings.TrustDomain)
	best, signed, err := i.signer.choose(answer, trusted, signs)
	if err != nil {
		return err
	}
	if best.equal(i.has) {
		return nil
	}
	i.settle(time.Now())
	if early := i.early(best, signed.by.trustDomain, signs); early != nil {
		if has, err := i.signer.checkGiven(i.has, trusted); err == nil && time.Until(has.notAfter) > handover(i.life) {
			return early
		}
	}
	if err := i.put(signed); err != nil {
		return err
	}
	i.has, i.by, i.life = best, signed.by, time.Until(signed.notAfter)
	i.log.Info("certificate taken", "trustDomain", signed.by.trustDomain, "notAfter", signed.notAfter.Format(time.RFC3339))
	return nil
}

// settle takes what outriggerd trusts for what all proxies do, when that has stood for
// long enough: an authority may have one root more without another one that signs.
func (i *identity) settle(now time.Time) {
	if len(i.settled) > 0 && now.Sub(i.heard) >= standing {
		i.settled = i.told
	}
}

// early says why some proxies may not accept a certificate yet. When another authority
// begins to sign, all of them trust what outriggerd does. Where the one of before is no
// better, it does not matter.
func (i *identity) early(g given, domain, signs string) error {
	if domain != signs && i.by.trustDomain == signs {
		return fmt.Errorf("the certificate is of trust domain %s, and outriggerd signs for %s; the one of before is kept until that changes, or until it is about to end", domain, signs)
	}
	if len(i.settled) == 0 {
		return nil
	}
	if _, err := i.signer.checkGiven(i.has, i.settled); err != nil {
		return nil //nolint:nilerr // the one of before leads to no settled root either
	}
	if _, err := i.signer.checkGiven(g, i.settled); err != nil {
		return fmt.Errorf("the certificate leads to a root that was not trusted when authority %s began to sign; the one of before is kept until another signs, or until the root has been trusted for %s", i.signs.name, standing)
	}
	return nil
}

// choose returns the certificate of an answer that can be used, one of the trust
// domain that signs before others: a workload may have several.
func (s signer) choose(answer []given, trusted accepted, signs string) (given, *signed, error) {
	var best given
	var chosen *signed
	var others []string
	var errs []error
	wanted := s.wanted(trusted)
	for _, g := range answer {
		if g.id != "" && !slices.Contains(wanted, g.id) {
			others = append(others, g.id)
			continue
		}
		signed, err := s.checkGiven(g, trusted)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if chosen == nil || chosen.by.trustDomain != signs && signed.by.trustDomain == signs {
			best, chosen = g, signed
		}
	}
	switch {
	case chosen != nil:
		return best, chosen, nil
	case len(errs) > 0:
		return given{}, nil, errors.Join(errs...)
	default:
		return given{}, nil, fmt.Errorf("the Workload API has certificates for [%s]; want one for %s", strings.Join(others, " "), strings.Join(wanted, " or "))
	}
}

// wanted are the names of the pod's identity in the accepted trust domains.
func (s signer) wanted(trusted accepted) []string {
	names := make([]string, len(trusted))
	for n, d := range trusted {
		names[n] = s.identity().URI(d.Name)
	}
	return names
}

// checkGiven makes sure that a certificate is what outriggerd would have signed,
// as far as that matters to others: for this identity alone, in a trust domain that is
// accepted, and below a root of that.
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
	leaf, wanted := chain[0], s.wanted(trusted)
	if len(leaf.URIs) != 1 || !slices.Contains(wanted, leaf.URIs[0].String()) {
		return nil, fmt.Errorf("the certificate is for %v; want exactly %s", leaf.URIs, strings.Join(wanted, " or "))
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
	return &signed{
		key: key, chain: roots(pair.Certificate).pem(), notAfter: end(chain), by: authority{trustDomain: leaf.URIs[0].Host},
	}, nil
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
func (i *identity) fromFiles(ctx context.Context, answers chan<- []given) {
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
			case answers <- []given{now}:
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
// pod, all of them whenever one is another.
func (i *identity) fromWorkloadAPI(ctx context.Context, answers chan<- []given) {
	for failures := 1; ; failures++ {
		err := i.listen(ctx, answers, func() { failures = 0 })
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
func (i *identity) listen(ctx context.Context, answers chan<- []given, answered func()) error {
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
		read, err := readSVIDs(answer.GetSvids())
		if err != nil {
			i.log.Warn("certificate not usable", "error", err)
		}
		select {
		case answers <- read:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// readSVIDs returns those that can be read. The error says of all others why not.
func readSVIDs(svids []*workload.X509SVID) ([]given, error) {
	read := make([]given, 0, len(svids))
	var errs []error
	for _, svid := range svids {
		chain, err := x509.ParseCertificates(svid.GetX509Svid())
		if err != nil {
			errs = append(errs, fmt.Errorf("read the chain of %s: %w", svid.GetSpiffeId(), err))
			continue
		}
		g := given{id: svid.GetSpiffeId(), key: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: svid.GetX509SvidKey()})}
		for _, c := range chain {
			g.chain = append(g.chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
		}
		read = append(read, g)
	}
	return read, errors.Join(errs...)
}
