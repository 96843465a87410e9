package identity

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/go-logr/logr"

	"github.com/outrigger-mesh/outrigger/internal/rotation"
)

const (
	// reopen is how soon an authority that could not be opened is tried again, and
	// openTimeout how long it may take.
	reopen      = 10 * time.Second
	openTimeout = 20 * time.Second
)

// Known is what is recorded of an authority that is to be opened.
type Known struct {
	// Roots that it is known by; none where nothing is recorded.
	Roots []*x509.Certificate
	// Fresh tells that people want to rotate to it and nobody knows it yet.
	Fresh bool
}

// A Follower keeps the authorities of the mesh's state open, and says who signs
// and who is trusted by it. Every replica runs one.
type Follower struct {
	// Authorities gets what holds.
	Authorities *Authorities
	// Open makes an authority usable; the issuer calls changed when it has other
	// roots. One that also has a Run is run while it is open.
	Open func(ctx context.Context, a Authority, known Known, changed func()) (Issuer, error)
	// Changed is told of each change of what holds.
	Changed func()
	// Namespace is the system namespace, and Lifetime that of workloads' certificates,
	// zero for 24 h: authorities that nobody knows yet are tried with them.
	Namespace string
	Lifetime  time.Duration
	Log       logr.Logger

	once   sync.Once
	wake   chan struct{}
	mu     sync.Mutex
	state  *rotation.State
	also   []Authority // that are to be open besides
	opened map[string]*running
	failed map[string]failure
	tasks  sync.WaitGroup
}

// running is an open authority.
type running struct {
	Opened
	untried bool // it is fresh and has signed nothing yet, so nobody is told of it
	stop    context.CancelFunc
	done    chan struct{}
}

// failure is why an authority is not open.
type failure struct {
	authority Authority
	why       string
	at        time.Time
}

func (f *Follower) init() {
	f.once.Do(func() {
		f.wake = make(chan struct{}, 1)
		f.opened, f.failed = map[string]*running{}, map[string]failure{}
	})
}

// Follow takes the newest state. It never blocks.
func (f *Follower) Follow(s rotation.State) {
	f.init()
	f.mu.Lock()
	f.state = &s
	f.mu.Unlock()
	f.signal()
}

// Also keeps further authorities open, because the mesh is about to trust them.
func (f *Follower) Also(also []Authority) {
	f.init()
	f.mu.Lock()
	same := slices.EqualFunc(also, f.also, func(a, b Authority) bool { return a.Name == b.Name && a.Same(b) })
	f.also = slices.Clone(also)
	f.mu.Unlock()
	if !same {
		f.signal()
	}
}

func (f *Follower) signal() {
	select {
	case f.wake <- struct{}{}:
	default: // a signal is waiting already
	}
}

// Seen returns the authorities that are open and those that failed, by name. One that
// is fresh is open once it has signed.
func (f *Follower) Seen() map[string]rotation.Open {
	f.init()
	f.mu.Lock()
	defer f.mu.Unlock()
	seen := map[string]rotation.Open{}
	for name, failure := range f.failed {
		seen[name] = rotation.Open{Authority: failure.authority, Failed: failure.why}
	}
	for name, running := range f.opened {
		if running.untried {
			continue
		}
		all := running.Issuer.Roots()
		open := rotation.Open{Authority: running.Authority, Roots: string(encodeCertificates(all...))}
		for _, root := range all {
			open.Prints = append(open.Prints, Print(root))
		}
		seen[name] = open
	}
	return seen
}

// Print is the SHA-256 of a certificate, in hex.
func Print(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	return hex.EncodeToString(sum[:])
}

// Run follows until ctx ends.
func (f *Follower) Run(ctx context.Context) error {
	f.init()
	defer f.tasks.Wait()
	defer f.closeAll()
	again := time.NewTimer(reopen)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-f.wake:
		case <-again.C:
		}
		f.reconcile(ctx)
		again.Reset(reopen)
	}
}

// reconcile opens what is missing, closes what is too much, and says what holds.
func (f *Follower) reconcile(ctx context.Context) {
	f.mu.Lock()
	state, also := f.state, f.also
	f.mu.Unlock()
	if state == nil {
		return
	}
	wanted := map[string]bool{}
	trusted := slices.Clone(state.Trusted)
	// Whoever signs first: another one may take long to say that it is not there.
	slices.SortStableFunc(trusted, func(a, b rotation.Trusted) int {
		return cmp.Compare(rank(a.Name, *state), rank(b.Name, *state))
	})
	for _, t := range trusted {
		wanted[t.Name] = true
		f.open(ctx, t.Authority, Known{Roots: parseRoots(t.Roots)})
		f.tell(*state)
	}
	for _, a := range also {
		if !wanted[a.Name] {
			wanted[a.Name] = true
			f.open(ctx, a, Known{Fresh: true})
		}
	}
	f.close(func(name string) bool { return !wanted[name] })
}

// rank is 0 for those that sign.
func rank(name string, s rotation.State) int {
	if name == s.Signing || name == s.Serving {
		return 0
	}
	return 1
}

// parseRoots returns recorded roots, none where there are none or they are damaged.
func parseRoots(text string) []*x509.Certificate {
	roots, err := parseCertificates([]byte(text))
	if err != nil {
		return nil
	}
	return roots
}

// open opens an authority that is not open yet, or is another one by now.
func (f *Follower) open(ctx context.Context, a Authority, known Known) {
	f.mu.Lock()
	now, failed := f.opened[a.Name], f.failed[a.Name]
	f.mu.Unlock()
	if now != nil && now.Authority.Same(a) {
		return
	}
	// A rotation has this called every two seconds, which would be too often to ask.
	if known.Fresh && failed.authority.Same(a) && time.Since(failed.at) < reopen {
		return
	}
	if now != nil {
		f.close(func(name string) bool { return name == a.Name })
	}
	limited, cancel := context.WithTimeout(ctx, openTimeout)
	issuer, err := f.Open(limited, a, known, f.rootsChanged)
	cancel()
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		f.fail(a, err)
		return
	}
	f.run(ctx, Opened{Authority: a, Issuer: issuer}, known.Fresh)
}

// fail says why an authority is not open.
func (f *Follower) fail(a Authority, err error) {
	f.mu.Lock()
	told := f.failed[a.Name].why
	f.failed[a.Name] = failure{authority: a, why: err.Error(), at: time.Now()}
	f.mu.Unlock()
	if told != err.Error() { // once, not every ten seconds
		f.Log.Error(err, "authority is not open", "authority", a.Name, "retryIn", reopen.String())
	}
}

// run uses an authority until it is closed.
func (f *Follower) run(ctx context.Context, opened Opened, fresh bool) {
	ctx, stop := context.WithCancel(ctx)
	one := &running{Opened: opened, untried: fresh, stop: stop, done: make(chan struct{})}
	f.mu.Lock()
	f.opened[opened.Authority.Name] = one
	f.mu.Unlock()
	var parts sync.WaitGroup
	log := f.Log.WithValues("authority", opened.Authority.Name)
	following, ok := opened.Issuer.(interface {
		Run(ctx context.Context, log logr.Logger) error
	})
	if ok {
		parts.Go(func() {
			if err := following.Run(ctx, log); err != nil && ctx.Err() == nil {
				log.Error(err, "authority is not followed any more")
			}
		})
	}
	if fresh { // asks for a certificate, of which the issuer may hear in Run alone
		parts.Go(func() { f.tried(ctx, one, f.try(ctx, opened)) })
	} else {
		f.isOpen(opened.Authority)
	}
	f.tasks.Go(func() {
		defer close(one.done)
		parts.Wait()
	})
}

// isOpen says that an authority can be used.
func (f *Follower) isOpen(a Authority) {
	f.mu.Lock()
	delete(f.failed, a.Name)
	f.mu.Unlock()
	f.Log.Info("authority is open", "authority", a.Name, "kind", a.Kind(), "trustDomain", a.TrustDomain)
}

func (f *Follower) rootsChanged() {
	f.Authorities.RootsChanged()
	f.Changed()
}

// tell says what holds by the state.
func (f *Follower) tell(s rotation.State) {
	accepted, err := f.accepted(s)
	if err != nil {
		f.Authorities.Missing(err)
		return
	}
	if now, err := f.Authorities.Now(); err == nil && now.same(accepted) {
		return
	}
	f.Authorities.Set(accepted)
	f.Changed()
}

// accepted is what holds by the state, with what is open. An authority that is not
// open signs nothing, and is trusted by the roots that are recorded for it.
func (f *Follower) accepted(s rotation.State) (Accepted, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	a := Accepted{Generation: s.Generation, Fading: s.Fading}
	for _, t := range s.Trusted {
		opened := Opened{Authority: t.Authority}
		if running := f.opened[t.Name]; running != nil {
			opened = running.Opened
		} else {
			why := cmp.Or(f.failed[t.Name].why, "it is being opened")
			roots := parseRoots(t.Roots)
			if len(roots) == 0 {
				return Accepted{}, fmt.Errorf("authority %s is not open: %s", t.Name, why)
			}
			opened.Issuer = &recorded{roots: roots, why: fmt.Errorf("authority %s is not open: %s", t.Name, why)}
		}
		a.Trusted = append(a.Trusted, opened)
		if t.Name == s.Signing {
			a.Signing = opened
		}
		if t.Name == s.Serving {
			a.Serving = opened
		}
	}
	if a.Signing.Issuer == nil || a.Serving.Issuer == nil {
		return Accepted{}, errors.New("the state of the authorities names none that signs")
	}
	return a, nil
}

// same reports whether nothing but recorded authorities differs.
func (a Accepted) same(b Accepted) bool {
	return a.Generation == b.Generation && a.Signing.equal(b.Signing) && a.Serving.equal(b.Serving) &&
		slices.EqualFunc(a.Trusted, b.Trusted, Opened.equal) && slices.Equal(a.Fading, b.Fading)
}

func (o Opened) equal(other Opened) bool {
	a, recordedA := o.Issuer.(*recorded)
	b, recordedB := other.Issuer.(*recorded)
	if recordedA && recordedB {
		return o.Authority.Name == other.Authority.Name && slices.EqualFunc(a.roots, b.roots, (*x509.Certificate).Equal)
	}
	return o.Authority.Name == other.Authority.Name && o.Issuer == other.Issuer
}

// close closes some of the open authorities.
func (f *Follower) close(which func(name string) bool) {
	f.mu.Lock()
	var closing []*running
	for name, running := range f.opened {
		if which(name) {
			closing = append(closing, running)
			delete(f.opened, name)
		}
	}
	for name := range f.failed {
		if which(name) {
			delete(f.failed, name)
		}
	}
	f.mu.Unlock()
	for _, running := range closing {
		running.stop()
		<-running.done
	}
}

func (f *Follower) closeAll() { f.close(func(string) bool { return true }) }

// A recorded authority is known by its roots alone.
type recorded struct {
	roots []*x509.Certificate
	why   error
}

// Issue says why nothing can be signed.
func (r *recorded) Issue(context.Context, *x509.CertificateRequest, Template) ([]*x509.Certificate, error) {
	return nil, r.why
}

// Roots returns the recorded roots.
func (r *recorded) Roots() []*x509.Certificate { return slices.Clone(r.roots) }
