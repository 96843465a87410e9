package identity

import (
	"context"
	"errors"
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
	running map[string]int
	cas     map[string]*CA
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

func (h *house) count(name string, by int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.running[name] += by
}

func (h *house) open(_ context.Context, a Authority, known Known, _ func()) (Issuer, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
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
	first, second := alone("a", "d", nil).Signing.Authority, alone("b", "d", nil).Signing.Authority
	h := &house{t: t, down: map[string]bool{}, running: map[string]int{}, cas: map[string]*CA{"a": testCA(t)}}
	authorities := &Authorities{}
	f := &Follower{Authorities: authorities, Open: h.open, Changed: func() {}, Log: testr.New(t)}
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
		all, prints, _ := f.Seen()
		if roots = all["b"]; roots != "" {
			s.Trusted = append(s.Trusted, rotation.Trusted{Authority: second, Roots: roots})
			if len(prints["b"]) != 1 || len(prints["b"][0]) != 64 {
				t.Errorf("prints are %v", prints)
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
	h := &house{t: t, down: map[string]bool{"a": true}, running: map[string]int{}, cas: map[string]*CA{"a": testCA(t)}}
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
