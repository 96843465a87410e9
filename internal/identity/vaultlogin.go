package identity

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/go-logr/logr"

	"github.com/outrigger-mesh/outrigger/internal/vault"
)

// errSameToken says that there is no other token than the one which Vault refused.
var errSameToken = errors.New("there is no other token for Vault")

const (
	// lastLogin is how often at most there is a login because Vault refused a token:
	// where the token's policy is what is wrong, another one is of no use.
	lastLogin = 10 * time.Second
	// unknownEnd is how soon a token whose end Vault does not tell is looked at again.
	unknownEnd = time.Minute
	// forever is the wait for a token without end.
	forever = 24 * time.Hour
)

// A vaultLogin has the token that Vault is asked with: the one in a Secret, which
// is renewed and read again when it changes, or one that is got with outriggerd's
// service account and got anew before it ends. It is safe for concurrent use.
type vaultLogin struct {
	cfg        VaultConfig
	readSecret func(ctx context.Context, name, entry string) (string, error)
	turn       chan struct{} // held by whoever logs in

	mu      sync.Mutex
	have    vault.Token // no value: none yet
	since   time.Time   // when it was got or renewed
	refused time.Time   // when the last login failed
	why     error       // that it failed
}

// token returns what to ask with, and logs in where there is none, or none but the
// stale one that Vault has refused.
func (l *vaultLogin) token(ctx context.Context, client *vault.Client, stale string) (string, error) {
	if value := l.held(stale); value != "" {
		return value, nil
	}
	select {
	case l.turn <- struct{}{}:
		defer func() { <-l.turn }()
	case <-ctx.Done():
		return "", fmt.Errorf("wait for the login to Vault: %w", context.Cause(ctx))
	}
	if value := l.held(stale); value != "" { // somebody else's turn brought it
		return value, nil
	}
	l.mu.Lock()
	why, recent := l.why, time.Since(l.refused) < soonestReturn
	tooSoon := stale != "" && l.cfg.Vault.Kubernetes != nil && time.Since(l.since) < lastLogin
	l.mu.Unlock()
	if recent {
		return "", why
	}
	if tooSoon {
		return "", errSameToken
	}
	next, err := l.get(ctx, client, stale)
	if errors.Is(err, errSameToken) {
		return "", err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case err == nil:
		l.have, l.since = next, time.Now()
	case ctx.Err() == nil: // else it is this caller's own failure
		l.refused, l.why = time.Now(), err
	}
	return next.Value, err
}

// forgive has the next login tried at once, because its circumstances are new.
func (l *vaultLogin) forgive() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refused = time.Time{}
}

func (l *vaultLogin) held(stale string) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.have.Value == stale || l.have.TTL > 0 && time.Since(l.since) >= l.have.TTL && l.cfg.Vault.Kubernetes != nil {
		return ""
	}
	return l.have.Value
}

// get returns a token that is not the stale one. How long one from a Secret lasts
// is seen by keep.
func (l *vaultLogin) get(ctx context.Context, client *vault.Client, stale string) (vault.Token, error) {
	if k := l.cfg.Vault.Kubernetes; k != nil {
		own, err := readTokenFile(l.cfg.TokenFile)
		if err != nil {
			return vault.Token{}, err
		}
		token, err := client.Login(ctx, k.Mount, k.Role, own)
		if err != nil {
			return vault.Token{}, fmt.Errorf("log in to Vault with role %s at %s: %w", k.Role, k.Mount, err)
		}
		return token, nil
	}
	value, err := l.secretToken(ctx)
	if err != nil {
		return vault.Token{}, err
	}
	if value == stale {
		return vault.Token{}, errSameToken
	}
	return vault.Token{Value: value}, nil
}

func (l *vaultLogin) secretToken(ctx context.Context) (string, error) {
	from := l.cfg.Vault.Token
	text, err := l.readSecret(ctx, from.Secret, from.Key)
	if err != nil {
		return "", fmt.Errorf("get the token for Vault: %w", err)
	}
	text = strings.TrimSpace(text)
	if strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", fmt.Errorf("%s of Secret %s holds something else than a token of Vault's, which is one word", from.Key, from.Secret)
	}
	return text, nil
}

// stale reports whether the Secret holds another token than the one in use, and
// takes that one.
func (l *vaultLogin) stale(ctx context.Context) bool {
	if l.cfg.Vault.Token == nil {
		return false
	}
	value, err := l.secretToken(ctx)
	if err != nil {
		return false // the one in use may be good for long
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if value == l.have.Value {
		return false
	}
	l.have, l.since = vault.Token{Value: value}, time.Now()
	return true
}

// keep makes the token last, and returns when it wants to be called again.
func (l *vaultLogin) keep(ctx context.Context, client *vault.Client, log logr.Logger) (time.Duration, error) {
	value, err := l.token(ctx, client, "")
	if err != nil {
		return retry, err
	}
	if l.cfg.Vault.Kubernetes != nil {
		return l.again(ctx, client)
	}
	next, err := client.LookUp(ctx, value)
	if err != nil {
		return l.lost(ctx, client, value, err)
	}
	switch {
	case next.TTL == 0:
		return forever, nil
	case !next.Renewable:
		log.Info("Vault's token cannot be renewed; put another one into its Secret before it ends", "secret", l.cfg.Vault.Token.Secret, "ends", time.Now().Add(next.TTL))
		return max(next.TTL/2, soonestRenewal), nil
	}
	renewed, err := client.Renew(ctx, value)
	if err != nil {
		return l.lost(ctx, client, value, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.have.Value != value {
		return 0, nil
	}
	if l.have.TTL > renewed.TTL+time.Second {
		log.Info("Vault's token nears the longest life that Vault allows it; put another one into its Secret before it ends", "secret", l.cfg.Vault.Token.Secret, "ends", time.Now().Add(renewed.TTL))
	}
	l.have, l.since = vault.Token{Value: value, TTL: renewed.TTL, Renewable: true}, time.Now()
	return max(renewed.TTL/2, soonestRenewal), nil
}

// again logs in anew at half of a token's time.
func (l *vaultLogin) again(ctx context.Context, client *vault.Client) (time.Duration, error) {
	l.mu.Lock()
	have, age := l.have, time.Since(l.since)
	l.mu.Unlock()
	if have.TTL == 0 {
		return forever, nil
	}
	if wait := have.TTL/2 - age; wait > 0 {
		return max(wait, soonestRenewal), nil
	}
	next, err := l.get(ctx, client, "")
	if err != nil {
		return max(min(retry, (have.TTL-age)/4), soonestRenewal), err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.have, l.since = next, time.Now()
	return max(next.TTL/2, soonestRenewal), nil
}

// lost takes the token that the Secret holds now, if it is another one.
func (l *vaultLogin) lost(ctx context.Context, client *vault.Client, value string, why error) (time.Duration, error) {
	answer, ok := errors.AsType[*vault.Error](why)
	if !ok || !answer.Denied() {
		return retry, why
	}
	if _, err := l.token(ctx, client, value); err == nil {
		return 0, nil
	}
	return unknownEnd, fmt.Errorf("look after the token of Secret %s: %w", l.cfg.Vault.Token.Secret, why)
}
