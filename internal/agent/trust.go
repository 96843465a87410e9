package agent

import (
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/outrigger-mesh/outrigger/bootstrap"
	"github.com/outrigger-mesh/outrigger/internal/signing"
)

// accepted are trust domains by name, each with the roots that vouch for it.
type accepted []acceptedDomain

type acceptedDomain struct {
	Name  string `json:"name"`
	Roots roots  `json:"roots"`
}

// roots returns those of a trust domain; none where it is not accepted.
func (a accepted) roots(domain string) roots {
	for _, d := range a {
		if d.Name == domain {
			return d.Roots
		}
	}
	return nil
}

// verify checks a chain, leaf first, up to a root of the trust domain that its one
// URI names.
func (a accepted) verify(chain []*x509.Certificate, usage x509.ExtKeyUsage) error {
	if uris := chain[0].URIs; len(uris) != 1 {
		return fmt.Errorf("its certificate has %d URIs; exactly one is allowed", len(uris))
	}
	domain := chain[0].URIs[0].Host
	trusted := a.roots(domain)
	if len(trusted) == 0 {
		return fmt.Errorf("trust domain %q is not accepted", domain)
	}
	return trusted.verify(chain, usage)
}

// readAccepted reads what outriggerd says. A trust domain without roots is one whose
// names are known and whose certificates are not good.
func readAccepted(told []*signing.TrustDomain) (accepted, error) {
	var out accepted
	for _, d := range told {
		if len(d.GetRoots()) == 0 {
			continue
		}
		parsed, err := parseRoots(nil, d.GetRoots())
		if err != nil {
			return nil, fmt.Errorf("parse the roots of trust domain %s: %w", d.GetName(), err)
		}
		out = append(out, acceptedDomain{Name: d.GetName(), Roots: parsed})
	}
	slices.SortFunc(out, func(a, b acceptedDomain) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

func (a accepted) equal(b accepted) bool {
	return slices.EqualFunc(a, b, func(x, y acceptedDomain) bool {
		return x.Name == y.Name && slices.EqualFunc(x.Roots, y.Roots, slices.Equal)
	})
}

// trusted is what outriggerd is verified against: what outriggerd said last, joined
// with the mounted roots, so that neither a mounted file that is late nor one that
// is early locks us out. The mounted file does not say which trust domain a root is
// of. It counts for that which outriggerd has ever named it for and, where that is
// none, for all: outriggerd is the same in each of them.
func (i *identity) trusted() (accepted, error) {
	text, err := os.ReadFile(i.trustFile)
	if err != nil && len(i.told) == 0 {
		return nil, fmt.Errorf("read the roots to trust: %w", err)
	}
	var mounted roots
	if err == nil && (len(text) > 0 || len(i.told) == 0) {
		if mounted, err = parseRoots(text, nil); err != nil && (len(i.told) == 0 || !errors.Is(err, errNoRoots)) {
			return nil, fmt.Errorf("read the roots to trust in %s: %w", i.trustFile, err)
		}
	}
	names := append([]string{i.signer.settings.TrustDomain}, i.signer.settings.AlsoTrusted...)
	if len(i.told) > 0 {
		names = nil
		for _, d := range i.told {
			names = append(names, d.Name)
		}
	}
	slices.Sort(names)
	var out accepted
	for _, name := range slices.Compact(names) {
		all := slices.Clone(i.told.roots(name))
		for _, root := range mounted {
			if of, known := i.labels[string(root)]; !known || of == name {
				all = append(all, root)
			}
		}
		if len(all) > 0 {
			joined, err := parseRoots(nil, all)
			if err != nil {
				return nil, err
			}
			out = append(out, acceptedDomain{Name: name, Roots: joined})
		}
	}
	return out, nil
}

// hear takes note of what outriggerd trusts.
func (i *identity) hear(told accepted) error {
	if len(told) == 0 || told.equal(i.told) {
		return nil
	}
	if i.labels == nil {
		i.labels = map[string]string{}
	}
	i.told, i.heard = told, time.Now()
	for _, d := range told {
		for _, root := range d.Roots {
			i.labels[string(root)] = d.Name
		}
	}
	text, err := json.Marshal(told)
	if err != nil {
		return fmt.Errorf("encode what is trusted: %w", err)
	}
	if err := replaceFile(i.files.Accepted, text); err != nil {
		return fmt.Errorf("write down what is trusted: %w", err)
	}
	return nil
}

// recall remembers what outriggerd trusted before this container was restarted: by
// now its trust domain may be another than the pod was made with.
func (i *identity) recall() error {
	text, err := os.ReadFile(i.files.Accepted)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read what was trusted: %w", err)
	}
	var told accepted
	if err := json.Unmarshal(text, &told); err != nil {
		return fmt.Errorf("read what was trusted: %w", err)
	}
	for _, d := range told {
		if _, err := parseRoots(nil, d.Roots); err != nil {
			return fmt.Errorf("read what was trusted in %s: %w", d.Name, err)
		}
	}
	return i.hear(told)
}

// writeTrust puts what outriggerd is verified against where Envoy sees it.
func (i *identity) writeTrust() error {
	trusted, err := i.trusted()
	if err != nil {
		return err
	}
	secret, err := i.trustSecret(trusted)
	if err != nil {
		return fmt.Errorf("make the file of trusted roots: %w", err)
	}
	if string(secret) == i.trust {
		return nil
	}
	if err := replaceFile(i.files.Trust, secret); err != nil {
		return fmt.Errorf("write the trusted roots: %w", err)
	}
	i.trust = string(secret)
	return nil
}

func (i *identity) trustSecret(trusted accepted) ([]byte, error) {
	settings := i.signer.settings
	if len(trusted) == 1 && trusted[0].Name == settings.TrustDomain {
		return bootstrap.TrustSecret(trusted[0].Roots.pem())
	}
	domains := make([]bootstrap.TrustDomain, len(trusted))
	for n, d := range trusted {
		domains[n] = bootstrap.TrustDomain{Name: d.Name, Roots: d.Roots.pem()}
	}
	return settings.TrustSecret(domains)
}
