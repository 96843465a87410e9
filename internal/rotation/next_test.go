package rotation

import (
	"fmt"
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
	dead  map[string]bool // authorities that sign no more, and are known by their roots
}

func newWorld(t *testing.T, first Authority, pods int) *world {
	w := &world{t: t, state: NewState(first, "PEM of "+first.Name), now: time.Unix(1000, 0), given: map[string]Leaf{}, away: map[string]bool{}, down: map[string]bool{}, dead: map[string]bool{}}
	for i := range pods {
		w.pods = append(w.pods, Pod{Name: fmt.Sprintf("shop/p%d", i), UID: fmt.Sprint(i), Connected: true, Trusts: 1, Leaf: &Leaf{Authority: first.Name, Domain: first.TrustDomain, Root: first.Name}})
	}
	w.want.Goal = w.state.Holds()
	return w
}

func (w *world) seen() Seen {
	seen := Seen{Roots: map[string]string{}, Prints: map[string][]string{}, Failed: map[string]string{}}
	open := append(w.want.Goal.All(), w.state.Holds().All()...)
	if w.state.Rotation != nil {
		open = append(open, w.state.Rotation.Goal.All()...)
	}
	for _, a := range open {
		if _, trusted := w.state.Find(a.Name); w.down[a.Name] || w.dead[a.Name] && !trusted {
			seen.Failed[a.Name] = "it is sealed"
			continue
		}
		seen.Roots[a.Name], seen.Prints[a.Name] = "PEM of "+a.Name, []string{a.Name, other + a.Name}
	}
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
			w.pods[i].Leaf = &Leaf{Authority: signing.Name, Domain: signing.TrustDomain, Root: signing.Name}
		}
		if leaf, ok := w.given[w.pods[i].Name]; ok {
			w.pods[i].Leaf = &leaf
		}
	}
	return progress
}

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
	for _, p := range w.pods {
		if slices.Contains(w.want.Forced, p.Name) {
			continue
		}
		if !w.seen().signedBy(p.Leaf, w.state, w.state.Names()...) {
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

func TestRotateRoot(t *testing.T) {
	w := newWorld(t, authority("a", "d"), 3)
	w.want.Goal = Goal{Sign: authority("b", "d")}
	w.run()
	w.wantSteps("trust: sign a serve a trust a+b", "sign: sign b serve a trust a+b", "serve: sign b serve b trust a+b", "narrow: sign b serve b trust b", "rest: sign b serve b trust b")
	if w.state.Last == nil || w.state.Last.From != "a" || w.state.Last.Step != StepDone {
		t.Errorf("the rotation is not recorded: %+v", w.state.Last)
	}
	w.steps = nil
	w.run()
	w.wantSteps("rest: sign b serve b trust b")
}

func TestRotateTrustDomain(t *testing.T) {
	w := newWorld(t, authority("a", "old"), 3)
	w.want.Goal = Goal{Sign: authority("b", "new")}
	var fading []string
	for w.state.Rotation != nil || w.state.Last == nil {
		w.turn(nil)
		if line := strings.Join(w.state.Fading, "+"); len(fading) == 0 || fading[len(fading)-1] != line {
			fading = append(fading, line)
		}
	}
	w.wantSteps("trust: sign a serve a trust a+b", "sign: sign b serve a trust a+b", "serve: sign b serve b trust a+b", "narrow: sign b serve b trust b", "forget: sign b serve b trust b", "rest: sign b serve b trust b")
	if !slices.Equal(fading, []string{"", "old", ""}) {
		t.Errorf("names that fade: %q; want old for one step", fading)
	}
}

func TestAwayBlocksUntilForced(t *testing.T) {
	w := newWorld(t, authority("a", "d"), 3)
	w.want.Goal, w.away["shop/p1"] = Goal{Sign: authority("b", "d")}, true
	var progress Progress
	for range 20 {
		progress = w.turn(nil)
	}
	if w.state.Signing != "a" || progress.Done != 2 || progress.Total != 3 || len(progress.Behind) != 1 || progress.Behind[0] != (Behind{"shop/p1", "it is not connected to outriggerd"}) {
		t.Fatalf("signing %s, %+v", w.state.Signing, progress)
	}
	w.want.Forced = []string{"shop/p1"}
	w.run()
	if w.state.Signing != "b" {
		t.Errorf("signs with %s", w.state.Signing)
	}
}

func TestUndoAtEachStep(t *testing.T) {
	for turns := range 6 {
		t.Run(fmt.Sprint(turns), func(t *testing.T) {
			w := newWorld(t, authority("a", "old"), 3)
			w.want.Goal = Goal{Sign: authority("b", "new")}
			for range turns + 1 {
				w.turn(nil)
			}
			if w.state.Rotation == nil {
				return
			}
			w.want.Undo = true
			w.run()
			if w.state.Signing != "a" || w.state.Serving != "a" || !slices.Equal(w.state.Names(), []string{"a"}) || !w.state.Last.Undone {
				t.Errorf("after undoing: %s", w.state.JSON())
			}
			w.run()
		})
	}
}

func TestUndoWaitsForNobodyBeforeTheNewOneSigned(t *testing.T) {
	w := newWorld(t, authority("a", "d"), 3)
	w.want.Goal, w.away["shop/p1"] = Goal{Sign: authority("b", "d")}, true
	w.turn(nil)
	w.want.Undo = true
	for range 3 {
		w.turn(nil)
	}
	if !slices.Equal(w.state.Names(), []string{"a"}) {
		t.Errorf("still trusted: %v", w.state.Names())
	}
}

// TestEveryReplicaServesBeforeTheOldOneLeaves holds that an outriggerd whose own
// certificate is not new yet is not cut off from the pods.
func TestEveryReplicaServesBeforeTheOldOneLeaves(t *testing.T) {
	w := newWorld(t, authority("a", "d"), 1)
	w.want.Goal = Goal{Sign: authority("b", "d")}
	for w.state.Serving != "b" {
		w.turn(nil)
	}
	seen := w.seen()
	seen.Replicas = append(seen.Replicas, Replica{Name: "slow", Heard: true, Generation: w.state.Generation, Serving: "a"})
	next, progress := Next(w.state, w.want, seen, w.now.Add(time.Hour))
	if len(next.Trusted) != 2 || progress.Of != 3 || progress.Replicas != 2 || len(progress.Behind) != 1 {
		t.Errorf("trusted are %v, %+v", next.Names(), progress)
	}
}

// TestDeadAuthority holds that a mesh is rotated away from an authority that is gone for
// good, although a replica that was restarted since has no certificate to serve with.
func TestDeadAuthority(t *testing.T) {
	w := newWorld(t, authority("a", "d"), 2)
	w.dead["a"] = true
	w.want.Goal = Goal{Sign: authority("b", "d")}
	w.run()
	if w.state.Signing != "b" || !slices.Equal(w.state.Names(), []string{"b"}) {
		t.Errorf("at rest at %s", w.state.JSON())
	}
}

func TestPause(t *testing.T) {
	w := newWorld(t, authority("a", "d"), 3)
	w.want.Goal = Goal{Sign: authority("b", "d")}
	w.turn(nil)
	w.want.Paused = true
	for range 5 {
		w.turn(nil)
	}
	if w.state.Rotation == nil || !w.state.Rotation.Paused || w.state.Signing != "a" {
		t.Fatalf("it went on: %s", w.state.JSON())
	}
	w.want.Paused = false
	w.run()
}

func TestProblems(t *testing.T) {
	w := newWorld(t, authority("a", "d"), 1)
	w.want.Goal, w.down["b"] = Goal{Sign: authority("b", "d")}, true
	if p := w.turn(nil); !strings.Contains(p.Problem, "b cannot be opened: it is sealed") {
		t.Errorf("a closed authority: %+v", p)
	}
	w.want.Goal = Goal{Sign: authority("a", "other")}
	if p := w.turn(nil); !strings.Contains(p.Problem, "the name a is trusted already") {
		t.Errorf("an authority of a name that is taken: %+v", p)
	}
	seen := w.seen()
	seen.Replicas = append(seen.Replicas, Replica{Name: "b"}, Replica{Name: "c", Heard: true})
	w.state.Rotation = &Rotation{Goal: w.state.Holds()}
	if _, p := w.state.count(StepNarrow, seen, "", w.state.follows); p.complete() || p.Of != 4 || len(p.Behind) != 2 {
		t.Errorf("replicas that do not follow do not count: %+v", p)
	}
}

// TestUnknownSignerCountsByItsRoot holds what replicas that were restarted know: where
// a certificate leads to, and not who signed it.
func TestUnknownSignerCountsByItsRoot(t *testing.T) {
	s := NewState(authority("a", "d"), "")
	s.Trusted = append(s.Trusted, Trusted{Authority: authority("b", "d")}, Trusted{Authority: authority("c", "other")})
	seen := Seen{Prints: map[string][]string{"a": {"r1"}, "b": {"r1", "r2"}, "c": {"r1"}}}
	for name, tc := range map[string]struct {
		leaf *Leaf
		want bool
	}{
		"known":                  {&Leaf{Authority: "b"}, true},
		"known to be another's":  {&Leaf{Authority: "a", Domain: "d", Root: "r1"}, false},
		"a root of its own":      {&Leaf{Domain: "d", Root: "r2"}, true},
		"a root that both have":  {&Leaf{Domain: "d", Root: "r1"}, true},
		"another root":           {&Leaf{Domain: "d", Root: "r3"}, false},
		"another trust domain":   {&Leaf{Domain: "other", Root: "r1"}, false},
		"nobody knows the leaf":  {nil, false},
		"it says nothing at all": {&Leaf{}, false},
	} {
		if got := seen.signedBy(tc.leaf, s, "b"); got != tc.want {
			t.Errorf("%s: counts %t; want %t", name, got, tc.want)
		}
	}
}

// TestCertificateFromSomebodyElse holds that a pod whose certificate is not of the new
// authority's domain and one of its roots holds up the rotation, and that no step passes
// it by once it is.
func TestCertificateFromSomebodyElse(t *testing.T) {
	for name, tc := range map[string]struct {
		goal  Goal
		wrong []Leaf
		steps []string // after that one which waits
		names []string
	}{
		"root": {
			goal:  Goal{Sign: authority("b", "old")},
			wrong: []Leaf{{Domain: "old", Root: other + "a"}, {Domain: "new", Root: other + "b"}},
			steps: []string{"serve", "narrow", "rest"}, names: []string{"b"},
		},
		"trust domain": {
			goal:  Goal{Sign: authority("b", "new")},
			wrong: []Leaf{{Domain: "old", Root: other + "a"}, {Domain: "new", Root: other + "a"}, {Domain: "old", Root: other + "b"}},
			steps: []string{"serve", "narrow", "forget", "rest"}, names: []string{"b"},
		},
		"one of several trust domains": {
			goal:  Goal{Sign: authority("b", "new"), Also: []Authority{authority("c", "third")}},
			wrong: []Leaf{{Domain: "old", Root: other + "a"}, {Domain: "third", Root: other + "b"}},
			steps: []string{"serve", "narrow", "forget", "rest"}, names: []string{"b", "c"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, authority("a", "old"), 3)
			first := Leaf{Domain: "old", Root: other + "a"}
			w.given, w.pods[1].Leaf = map[string]Leaf{"shop/p1": first}, &first
			w.want.Goal = tc.goal
			var progress Progress
			for range 20 {
				progress = w.turn(nil)
			}
			for _, wrong := range tc.wrong {
				seen := w.seen()
				seen.Pods[1].Leaf = &wrong
				next, progress := Next(w.state, w.want, seen, w.now.Add(time.Hour))
				if next.Generation != w.state.Generation || phase(next) != StepSign || next.Signing != "b" || progress.Done != 2 || progress.Total != 3 {
					t.Errorf("with %+v: %+v in %s", wrong, progress, next.JSON())
				}
			}
			if want := (Behind{"shop/p1", "its certificate is not new yet"}); !slices.Equal(progress.Behind, []Behind{want}) {
				t.Errorf("behind are %+v; want %+v", progress.Behind, want)
			}
			w.steps, w.given["shop/p1"] = nil, Leaf{Domain: tc.goal.Sign.TrustDomain, Root: other + "b"}
			w.run()
			var steps []string
			for _, line := range w.steps[1:] {
				step, _, _ := strings.Cut(line, ":")
				steps = append(steps, step)
			}
			if !slices.Equal(steps, tc.steps) || !slices.Equal(w.state.Names(), tc.names) {
				t.Errorf("the steps were %v, and trusted are %v; want %v and %v", steps, w.state.Names(), tc.steps, tc.names)
			}
		})
	}
}

// TestCertificateOfAnAuthorityThatNeverSigned holds that an authority which signed nothing
// itself stays trusted while somebody else's certificate leads to its root.
func TestCertificateOfAnAuthorityThatNeverSigned(t *testing.T) {
	a, b := authority("a", "d"), authority("b", "other")
	w := newWorld(t, a, 2)
	w.want.Goal = Goal{Sign: a, Also: []Authority{b}}
	w.run()
	passive, _ := w.state.Find("b")
	w.give(1, passive)
	w.want.Goal = Goal{Sign: a}
	var progress Progress
	for range 5 {
		progress = w.turn(nil)
	}
	if want := (Behind{"shop/p1", "its certificate is not new yet"}); !slices.Equal(progress.Behind, []Behind{want}) || phase(w.state) != StepServe {
		t.Fatalf("in %s, behind are %+v; want %+v", phase(w.state), progress.Behind, want)
	}
	delete(w.given, "shop/p1")
	w.run()
	if !slices.Equal(w.state.Names(), []string{"a"}) {
		t.Errorf("trusted are %v", w.state.Names())
	}
}

func TestSettle(t *testing.T) {
	w := newWorld(t, authority("a", "d"), 1)
	w.want.Goal = Goal{Sign: authority("b", "d")}
	w.turn(nil)
	for range 3 {
		if w.state, _ = Next(w.state, w.want, w.seen(), w.now.Add(settle-time.Second)); w.state.Signing != "a" {
			t.Fatal("a pod that started a moment ago may not be seen yet")
		}
	}
}

func TestRecover(t *testing.T) {
	w := newWorld(t, authority("a", "d"), 2)
	w.want.Goal = Goal{Sign: authority("b", "d"), Recover: true}
	w.away["shop/p0"], w.away["shop/p1"] = true, true
	next, _ := Next(w.state, w.want, w.seen(), w.now)
	if next.Signing != "b" || !slices.Equal(next.Names(), []string{"b"}) || next.Rotation != nil {
		t.Fatalf("not at the goal: %s", next.JSON())
	}
	again, _ := Next(next, w.want, w.seen(), w.now)
	if again.Generation != next.Generation {
		t.Error("it recovers for ever")
	}
}

// TestOSMsTable walks the steps of OSM's end-to-end test of MeshRootCertificates.
func TestOSMsTable(t *testing.T) {
	a, b := authority("mrc1", "d"), authority("mrc2", "d")
	w := newWorld(t, a, 3)
	for _, step := range []struct {
		goal          Goal
		sign, trusted string
	}{
		{Goal{Sign: a, Also: []Authority{b}}, "mrc1", "mrc1+mrc2"},
		{Goal{Sign: b, Also: []Authority{a}}, "mrc2", "mrc1+mrc2"},
		{Goal{Sign: b}, "mrc2", "mrc2"},
	} {
		w.want.Goal = step.goal
		w.run()
		if got := strings.Join(w.state.Names(), "+"); w.state.Signing != step.sign || w.state.Serving != step.sign || got != step.trusted {
			t.Errorf("signs %s, trusts %s; want %s, %s", w.state.Signing, got, step.sign, step.trusted)
		}
	}
}
