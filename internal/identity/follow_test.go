package identity

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/go-logr/logr/testr"

	"github.com/outrigger-mesh/outrigger/internal/rotation"
)

// A house opens authorities that are CAs in memory, and counts those that run.
type house struct {
	t       *testing.T
	mu      sync.Mutex
	down    map[string]bool
	refuses map[string]bool
	opened  map[string]int // how often
	signed  map[string][]Template
	running map[string]int
	cas     map[string]*CA
}

func newHouse(t *testing.T) *house {
	return &house{
		t: t, down: map[string]bool{}, refuses: map[string]bool{}, opened: map[string]int{}, signed: map[string][]Template{}, running: map[string]int{},
		cas: map[string]*CA{"a": testCA(t)},
	}
}

// guest is an issuer that runs.
type guest struct {
	*CA
	name  string
	house *house
}

func (g *guest) Run(ctx context.Context, _ logr.Logger) error {
	g.house.count(g.name, 1)
	<-ctx.Done()
	g.house.count(g.name, -1)
	return nil
}

func (g *guest) Issue(ctx context.Context, r *x509.CertificateRequest, t Template) ([]*x509.Certificate, error) {
	g.house.mu.Lock()
	defer g.house.mu.Unlock()
	g.house.signed[g.name] = append(g.house.signed[g.name], t)
	if g.house.refuses[g.name] {
		return nil, errors.New("the role allows no serial numbers")
	}
	return g.CA.Issue(ctx, r, t)
}

func (h *house) count(name string, by int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.running[name] += by
}

func (h *house) open(_ context.Context, a Authority, known Known, _ func()) (Issuer, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.opened[a.Name]++
	if h.down[a.Name] {
		return nil, errors.New("it is sealed")
	}
	if h.cas[a.Name] == nil {
		if !known.Fresh && len(known.Roots) == 0 {
			return nil, errors.New("nobody wants it")
		}
		h.cas[a.Name] = testCA(h.t)
	}
	return &guest{CA: h.cas[a.Name], name: a.Name, house: h}, nil
}

func TestFollower(t *testing.T) {
	first, second := alone("a", trustDomain, nil).Signing.Authority, alone("b", trustDomain, nil).Signing.Authority
	h := newHouse(t)
	authorities := &Authorities{}
	f := &Follower{Authorities: authorities, Open: h.open, Changed: func() {}, Log: testr.New(t), Namespace: "outrigger-system"}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- f.Run(ctx) }()
	until := func(what string, ok func(Accepted) bool) {
		t.Helper()
		deadline := time.Now().Add(20 * time.Second)
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for ; ; <-tick.C {
			now, err := authorities.Now()
			if err == nil && ok(now) {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: %+v, %v", what, now, err)
			}
		}
	}

	s := rotation.NewState(first, string(encodeCertificates(h.cas["a"].Roots()...)))
	f.Follow(s)
	until("the first is open", func(a Accepted) bool { return a.Signing.Authority.Name == "a" && len(a.Trusted) == 1 })

	f.Also([]Authority{second})
	deadline := time.After(20 * time.Second)
	for roots := ""; roots == ""; {
		known := f.Seen()["b"]
		if roots = known.Roots; roots != "" {
			s.Trusted = append(s.Trusted, rotation.Trusted{Authority: second, Roots: roots})
			if !known.Authority.Same(second) || len(known.Prints) != 1 || len(known.Prints[0]) != 64 {
				t.Errorf("known is %+v", known)
			}
		}
		select {
		case <-deadline:
			t.Fatal("b is not open")
		default:
		}
	}
	s.Generation, s.Signing = 2, "b"
	f.Follow(s)
	until("b signs", func(a Accepted) bool {
		return a.Generation == 2 && a.Signing.Authority.Name == "b" && a.Serving.Authority.Name == "a" && len(a.Roots()) == 2
	})

	s.Generation, s.Serving, s.Trusted, s.Fading = 3, "b", s.Trusted[1:], []string{"old"}
	f.Also(nil)
	f.Follow(s)
	until("a is left", func(a Accepted) bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		domains := a.Domains()
		return len(a.Roots()) == 1 && h.running["a"] == 0 && h.running["b"] == 1 && len(domains) == 2 && domains[1].Bundle() == ""
	})
	cancel()
	must(t, <-ended)
	if h.running["b"] != 0 {
		t.Error("b runs after the end")
	}
}

// TestFollowerTrustsWhatIsRecorded wants nobody to be trusted less because an issuer
// is down.
func TestFollowerTrustsWhatIsRecorded(t *testing.T) {
	h := newHouse(t)
	h.down["a"] = true
	f := &Follower{Authorities: &Authorities{}, Open: h.open, Changed: func() {}, Log: testr.New(t)}
	f.init()
	s := rotation.NewState(alone("a", "d", nil).Signing.Authority, "")
	f.Follow(s)
	f.reconcile(t.Context())
	if _, err := f.Authorities.Now(); err == nil || !strings.Contains(err.Error(), "it is sealed") {
		t.Errorf("without roots: %v", err)
	}
	s.Trusted[0].Roots = string(encodeCertificates(h.cas["a"].Roots()...))
	f.Follow(s)
	f.reconcile(t.Context())
	now, err := f.Authorities.Now()
	must(t, err)
	if len(now.Roots()) != 1 {
		t.Errorf("%d roots; want the recorded one", len(now.Roots()))
	}
	if _, err := now.Signing.Issuer.Issue(t.Context(), nil, Template{}); err == nil || !strings.Contains(err.Error(), "it is sealed") {
		t.Errorf("signing says %v", err)
	}
	h.down["a"] = false
	f.reconcile(t.Context())
	defer f.closeAll()
	if now, err = f.Authorities.Now(); err != nil || now.Signing.Issuer.(*guest) == nil {
		t.Errorf("it is back, and does not sign: %v", err)
	}
}

// TestFollowerTriesWhoIsToSign wants nobody to hear that an authority is open which the
// mesh is to move to and which signs nothing, and that it is not asked all the time.
func TestFollowerTriesWhoIsToSign(t *testing.T) {
	h := newHouse(t)
	f := &Follower{Authorities: &Authorities{}, Open: h.open, Changed: func() {}, Log: testr.New(t), Namespace: "outrigger-system", Lifetime: 20 * time.Minute}
	f.init()
	defer f.closeAll()
	b := alone("b", trustDomain, nil).Signing.Authority
	f.Follow(rotation.NewState(alone("a", trustDomain, nil).Signing.Authority, string(encodeCertificates(h.cas["a"].Roots()...))))
	f.Also([]Authority{b})
	until := func(what string, ok func(roots, why string) bool) {
		t.Helper()
		eventually(t, what, func() error {
			if known := f.Seen()["b"]; !ok(known.Roots, known.Failed) {
				return fmt.Errorf("its roots are %q, it failed because of %q", known.Roots, known.Failed)
			}
			return nil
		})
	}
	refused := func(roots, why string) bool { return roots == "" && strings.Contains(why, "no serial numbers") }

	h.refuses["b"] = true
	f.reconcile(t.Context())
	until("it is known that b does not sign", refused)
	for range 5 { // as often as the state changes
		f.reconcile(t.Context())
	}
	until("it still is", refused)
	if h.opened["b"] != 1 || len(h.signed["b"]) != 1 {
		t.Errorf("opened %d times, asked %d times; want once each", h.opened["b"], len(h.signed["b"]))
	}
	if got := h.signed["b"][0]; len(got.PodUID) != 36 || got.Lifetime != 20*time.Minute || got.URIs[0].String() != "spiffe://"+trustDomain+"/ns/outrigger-system/sa/outriggerd" {
		t.Errorf("asked for %+v; want what pods ask for", got)
	}

	f.mu.Lock()
	failed := f.failed["b"]
	failed.at = failed.at.Add(-reopen)
	f.failed["b"] = failed
	f.mu.Unlock()
	f.reconcile(t.Context())
	eventually(t, "it is asked again later", func() error {
		h.mu.Lock()
		defer h.mu.Unlock()
		if len(h.signed["b"]) != 2 {
			return fmt.Errorf("asked %d times", len(h.signed["b"]))
		}
		return nil
	})
	until("it still does not sign", refused)

	h.mu.Lock()
	h.refuses["b"] = false
	h.mu.Unlock()
	b.BuiltIn = &rotation.BuiltIn{Secret: "mended"}
	f.Also([]Authority{b})
	f.reconcile(t.Context()) // another one, which need not wait
	until("b is open", func(roots, why string) bool { return roots != "" && why == "" })
	if n := len(h.signed["a"]); n != 0 {
		t.Errorf("the authority that signs already was asked %d times", n)
	}
}

// eventually waits for a condition that others bring about.
func eventually(t *testing.T, what string, ok func() error) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ok()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		<-tick.C
	}
}
