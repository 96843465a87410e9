package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/outrigger-mesh/outrigger/bootstrap"
	"github.com/outrigger-mesh/outrigger/internal/signing"
)

const (
	// trustInterval is how often the mounted roots are read again. The kubelet
	// needs about a minute itself to bring a change into the pod.
	trustInterval = 30 * time.Second
	// signTimeout bounds one request for a certificate. It is longer than outriggerd
	// waits for its issuer, so that what outriggerd says about that arrives.
	signTimeout = 50 * time.Second
	// longestRetryAfter bounds what outriggerd may ask for.
	longestRetryAfter = 2 * time.Minute
	// pollInterval is about how often outriggerd is asked who signs. Agents that see
	// another authority renew within changeSpread.
	pollInterval = 30 * time.Second
	changeSpread = 5 * time.Second
	// firstRetry and lastRetry bound the back-off.
	firstRetry = 250 * time.Millisecond
	lastRetry  = 30 * time.Second
	// soonest bounds how fast certificates of a short life are renewed.
	soonest = time.Second
)

// An identity keeps the files of the workload's key, chain and roots up to date
// for Envoy.
type identity struct {
	signer      signer
	trustFile   string
	identityDir string // where certificates of somebody else come from
	files       bootstrap.Files
	log         *slog.Logger

	notAfter atomic.Pointer[time.Time] // of what is in the file; nil before the first
	first    chan struct{}             // closed when there is a certificate
	// All of the following are used by keep alone.
	by      authority         // of what is in the file
	has     given             // what is in the file, where somebody else gives it
	life    time.Duration     // which that had when it came
	signs   authority         // who signs, as outriggerd said last
	told    accepted          // what outriggerd trusts, as it said last; nil before
	heard   time.Time         // when told became what it is
	settled accepted          // what all proxies trust: told, when signs began or after standing
	labels  map[string]string // roots, DER, to the trust domain for which outriggerd has named them
	trust   string            // what is in the trust file
}

func newIdentity(c Config, files bootstrap.Files) *identity {
	return &identity{
		signer:      signer{settings: c.Settings, node: c.Node, tokenFile: c.TokenFile},
		trustFile:   c.TrustFile,
		identityDir: c.IdentityDir,
		files:       files,
		log:         c.Log,
		first:       make(chan struct{}),
	}
}

// valid returns an error unless there is a certificate for the given moment.
func (i *identity) valid(now time.Time) error {
	notAfter := i.notAfter.Load()
	switch {
	case notAfter == nil:
		return errors.New("no certificate yet")
	case now.After(*notAfter):
		return fmt.Errorf("the certificate ended at %s", notAfter.Format(time.RFC3339))
	}
	return nil
}

// keep gets a certificate and renews it until ctx ends. Nothing that goes wrong
// ends it: a workload without control plane has its certificate for half its
// life yet.
func (i *identity) keep(ctx context.Context) error {
	if err := i.recall(); err != nil {
		i.log.Warn("what was trusted before is not known", "error", err)
	}
	if i.signer.settings.Identity != nil {
		return i.follow(ctx)
	}
	poll := time.NewTimer(i.pollIn())
	defer poll.Stop()
	trust := time.NewTicker(trustInterval)
	defer trust.Stop()
	next := time.NewTimer(0)
	defer next.Stop()
	failures := 0
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-trust.C:
			if i.notAfter.Load() == nil {
				continue
			}
			if err := i.writeTrust(); err != nil {
				i.log.Error("trusted roots not refreshed", "error", err)
			}
		case <-poll.C:
			// Whoever was sent away comes back when it was told to.
			if i.notAfter.Load() != nil && i.look(ctx) && failures == 0 {
				i.log.Info("another authority signs; the certificate is renewed")
				next.Reset(jitter(changeSpread/2, 1))
			}
			poll.Reset(i.pollIn())
		case <-next.C:
			notAfter, err := i.renew(ctx)
			if ctx.Err() != nil {
				return nil
			}
			if err != nil {
				failures++
				wait := max(backoff(failures), spread(signing.RetryAfter(err)))
				i.log.Warn("no certificate", "error", err, "attempt", failures, "retryIn", wait.Round(time.Millisecond).String())
				next.Reset(wait)
				continue
			}
			failures = 0
			wait := renewal(time.Until(notAfter))
			i.log.Info("certificate signed", "notAfter", notAfter.Format(time.RFC3339), "renewIn", wait.Round(time.Second).String())
			next.Reset(wait)
		}
	}
}

// pollIn is when to ask again who signs: about every half minute, and more often
// where certificates live for minutes only.
func (i *identity) pollIn() time.Duration {
	every := pollInterval
	if i.life > 0 {
		every = max(soonest, min(every, i.life/20))
	}
	return jitter(every, 1.0/3)
}

// look asks outriggerd who signs and what it trusts, and reports whether another
// authority signs than did what is in the file.
func (i *identity) look(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	trusted, err := i.trusted()
	if err != nil {
		i.log.Debug("outriggerd not asked who signs", "error", err)
		return false
	}
	now, told, err := i.signer.current(ctx, trusted)
	if err != nil {
		i.log.Debug("outriggerd does not say who signs", "error", err)
		return false
	}
	if err := errors.Join(i.hear(told), i.writeTrust()); err != nil {
		i.log.Error("trusted roots not refreshed", "error", err)
	}
	i.note(now)
	return now != i.by
}

// note takes note of who signs, after what is trusted.
func (i *identity) note(signs authority) {
	if signs.name != i.signs.name || signs.trustDomain != i.signs.trustDomain {
		i.settled = i.told
	}
	i.signs = signs
}

// renew has a new key signed and puts it where Envoy sees it.
func (i *identity) renew(ctx context.Context) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, signTimeout)
	defer cancel()
	trusted, err := i.trusted()
	if err != nil {
		return time.Time{}, err
	}
	signed, err := i.signer.sign(ctx, trusted)
	if err != nil {
		return time.Time{}, err
	}
	if err := i.hear(signed.trusted); err != nil {
		return time.Time{}, err
	}
	if err := i.put(signed); err != nil {
		return time.Time{}, err
	}
	i.by, i.life = signed.by, time.Until(signed.notAfter)
	return signed.notAfter, nil
}

// put writes a certificate where Envoy sees it.
func (i *identity) put(signed *signed) error {
	// Trust first: the new certificate may belong to a new root.
	if err := i.writeTrust(); err != nil {
		return err
	}
	secret, err := bootstrap.CertificateSecret(signed.chain, signed.key)
	if err != nil {
		return fmt.Errorf("make the certificate's file: %w", err)
	}
	if err := replaceFile(i.files.Certificate, secret); err != nil {
		return fmt.Errorf("write the certificate: %w", err)
	}
	if i.notAfter.Swap(&signed.notAfter) == nil {
		close(i.first)
	}
	return nil
}

// renewal is half of what is left, a tenth more or less, so that pods that
// started together do not come together.
func renewal(left time.Duration) time.Duration {
	return max(soonest, jitter(left/2, 0.1))
}

// backoff doubles with each failure, half of it more or less.
func backoff(failures int) time.Duration {
	return jitter(min(firstRetry<<min(failures-1, 16), lastRetry), 0.5)
}

// spread is d and up to as much again, so that those who were sent away together
// do not come back together.
func spread(d time.Duration) time.Duration {
	d = min(d, longestRetryAfter)
	return d + time.Duration(rand.Float64()*float64(d)) //nolint:gosec // spreads load, keeps no secret
}

// jitter is d, more or less by up to a share of it.
func jitter(d time.Duration, share float64) time.Duration {
	return d + time.Duration((2*rand.Float64()-1)*share*float64(d)) //nolint:gosec // spreads load, keeps no secret
}
