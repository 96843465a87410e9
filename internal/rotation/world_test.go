package rotation

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

func authority(name, domain string) Authority {
	return Authority{Name: name, TrustDomain: domain, BuiltIn: &BuiltIn{Secret: name}}
}

// other is the root of somebody else that an authority has besides its own.
const other = "other root of "

// A world plays a mesh: what its pods trust and have, and whether they are there.
type world struct {
	t     *testing.T
	state State
	want  Control
	now   time.Time
	pods  []Pod
	given map[string]Leaf // of pods that have their certificate from somebody else
	away  map[string]bool
	later []Unstarted
	steps []string // of the state, as they came
	down  map[string]bool
	// What the elected replica has opened; it does not follow while it is busy.
	opened map[string]Open
	busy   bool
	keys   map[string]string // of Secrets, when they are others
	dead   map[string]bool   // authorities that sign no more, and are known by their roots
}

func newWorld(t *testing.T, first Authority, pods int) *world {
	w := &world{t: t, state: NewState(first, "PEM of "+first.Name), now: time.Unix(1000, 0), given: map[string]Leaf{}, opened: map[string]Open{}, keys: map[string]string{}, away: map[string]bool{}, down: map[string]bool{}, dead: map[string]bool{}}
	for i := range pods {
		w.pods = append(w.pods, Pod{Name: fmt.Sprintf("shop/p%d", i), UID: fmt.Sprint(i), Connected: true, Trusts: 1, Leaf: &Leaf{Authority: first.Name, Domain: first.TrustDomain, Roots: []string{first.Name}}})
	}
	w.want.Goal = w.state.Holds()
	return w
}

func (w *world) seen() Seen {
	if !w.busy {
		w.open()
	}
	seen := Seen{Open: maps.Clone(w.opened)}
	for _, p := range w.pods {
		if w.away[p.Name] {
			p = Pod{Name: p.Name, UID: p.UID}
		}
		seen.Pods = append(seen.Pods, p)
	}
	seen.Unstarted = w.later
	seen.Unstarted = w.later
	serving := w.state.Serving
	seen.Replicas = []Replica{{Name: "a", Heard: true, Generation: w.state.Generation, Serving: serving}}
	if w.dead[serving] { // one that was restarted has no certificate
		serving = ""
	}
	seen.Replicas = append(seen.Replicas, Replica{Name: "restarted", Heard: true, Generation: w.state.Generation, Serving: serving})
	return seen
}

// open has the elected replica open what it should, and close the rest.
func (w *world) open() {
	wanted := append(w.state.Holds().All(), Opening(w.state, w.want)...)
	maps.DeleteFunc(w.opened, func(_ string, o Open) bool {
		return o.Failed != "" || !slices.ContainsFunc(wanted, func(a Authority) bool { return a.Name == o.Authority.Name && a.Same(o.Authority) })
	})
	for _, a := range wanted {
		if _, ok := w.opened[a.Name]; ok {
			continue
		}
		w.opened[a.Name] = w.known(a)
		if _, trusted := w.state.Find(a.Name); w.down[a.Name] || w.dead[a.Name] && !trusted {
			w.opened[a.Name] = Open{Authority: a, Failed: "it is sealed"}
		}
	}
}

func (w *world) known(a Authority) Open {
	return Open{Authority: a, Roots: w.pem(a), Prints: []string{a.Name, other + a.Name}}
}

// pem are the roots that an authority shows now.
func (w *world) pem(a Authority) string {
	return "PEM of " + a.BuiltIn.Secret + w.keys[a.BuiltIn.Secret]
}

// turn lets the elected replica act once, and then some of the pods follow. It
// checks that nobody is cut who is not forced.
func (w *world) turn(r *rand.Rand) Progress {
	w.now = w.now.Add(settle)
	next, progress := Next(w.state, w.want, w.seen(), w.now)
	if step := fmt.Sprintf("%s: sign %s serve %s trust %s", phase(next), next.Signing, next.Serving, strings.Join(next.Names(), "+")); len(w.steps) == 0 || w.steps[len(w.steps)-1] != step {
		w.steps = append(w.steps, step)
	}
	w.state = next
	w.check()
	for i := range w.pods {
		if w.away[w.pods[i].Name] || r != nil && r.IntN(2) == 0 {
			continue
		}
		signing, _ := w.state.Find(w.state.Signing)
		w.pods[i].Trusts = w.state.Generation
		if !w.dead[signing.Name] {
			w.pods[i].Leaf = w.leaf(signing)
			if i%2 == 1 { // of the other half nobody knows who signed
				w.pods[i].Leaf.Authority = signing.Name
			}
		}
		if leaf, ok := w.given[w.pods[i].Name]; ok {
			w.pods[i].Leaf = &leaf
		}
	}
	return progress
}

// leaf is a certificate of an authority, as it is known by the trusted roots that vouch
// for it.
func (w *world) leaf(by Trusted) *Leaf {
	leaf := &Leaf{Domain: by.TrustDomain}
	for _, t := range w.state.Trusted {
		if t.TrustDomain == by.TrustDomain && key(t.Name) == key(by.Name) {
			leaf.Roots = append(leaf.Roots, t.Name)
		}
	}
	return leaf
}

// key is of an authority's root; "a-renewed" is a root that was renewed with the key of a.
func key(name string) string { return strings.TrimSuffix(name, "-renewed") }

func phase(s State) Step {
	if s.Rotation == nil {
		return "rest"
	}
	return s.Rotation.Step
}

func (w *world) check() {
	w.t.Helper()
	signing, ok := w.state.Find(w.state.Signing)
	if _, serving := w.state.Find(w.state.Serving); !ok || !serving {
		w.t.Fatalf("somebody signs who is not trusted: %s", w.state.JSON())
	}
	every := Seen{Open: map[string]Open{}} // as pods see it
	for _, trusted := range w.state.Trusted {
		every.Open[trusted.Name] = w.known(trusted.Authority)
		if trusted.Roots != w.pem(trusted.Authority) {
			w.t.Fatalf("%s is trusted by the roots %q; want its own, %q", trusted, trusted.Roots, w.pem(trusted.Authority))
		}
	}
	for _, p := range w.pods {
		if (Rotation{Forced: w.want.Forced}).forced(p.Name, p.UID) {
			continue
		}
		if !every.signedBy(p.Leaf, w.state, w.state.Names()...) {
			w.t.Fatalf("%s is cut: its certificate is %+v; trusted are %v", p.Name, *p.Leaf, w.state.Names())
		}
		if signing.Used && p.Trusts < signing.Since {
			w.t.Fatalf("%s would refuse its peers: %s signs and it trusts generation %d", p.Name, signing.Name, p.Trusts)
		}
	}
}

// run turns until the mesh is at rest. Whoever else gives certificates follows.
func (w *world) run() {
	w.t.Helper()
	for range 100 {
		for name := range w.given {
			signing, _ := w.state.Find(w.state.Signing)
			w.given[name] = given(signing)
		}
		w.turn(nil)
		if w.state.Rotation == nil {
			return
		}
	}
	w.t.Fatalf("no rest: %s", w.state.JSON())
}

func (w *world) wantSteps(steps ...string) {
	w.t.Helper()
	if !slices.Equal(w.steps, steps) {
		w.t.Errorf("the steps were\n  %s\nwant\n  %s", strings.Join(w.steps, "\n  "), strings.Join(steps, "\n  "))
	}
}
