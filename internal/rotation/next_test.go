package rotation

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

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

// TestRenewedRoot holds that a mesh moves to a root that was renewed with its key, which
// vouches for the same certificates as the one of before.
func TestRenewedRoot(t *testing.T) {
	w := newWorld(t, authority("a", "d"), 3)
	w.want.Goal = Goal{Sign: authority("a-renewed", "d")}
	w.run()
	if !slices.Equal(w.state.Names(), []string{"a-renewed"}) {
		t.Errorf("at rest at %s", w.state.JSON())
	}
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

// TestForcedPodIsMadeAnew holds that nobody is passed by because a pod that had its name
// was: one of a StatefulSet whose node died, say.
func TestForcedPodIsMadeAnew(t *testing.T) {
	w := newWorld(t, authority("a", "d"), 3)
	w.want.Goal, w.away["shop/p1"], w.want.Forced = Goal{Sign: authority("b", "d")}, true, []string{"shop/p1@1"}
	for w.state.Signing != "b" {
		w.turn(nil)
	}
	w.away["shop/p1"], w.pods[1] = false, Pod{Name: "shop/p1", UID: "new", Connected: true, Trusts: w.state.Generation, Leaf: &Leaf{Authority: "a"}}
	next, progress := Next(w.state, w.want, w.seen(), w.now.Add(time.Hour))
	if want := (Behind{"shop/p1", "its certificate is not new yet"}); next.Serving != "a" || !slices.Equal(progress.Behind, []Behind{want}) {
		t.Fatalf("outriggerd serves with %s, behind are %+v; want %+v", next.Serving, progress.Behind, want)
	}
	w.want.Forced = append(w.want.Forced, "shop/p1") // that one too, and whoever follows
	if next, _ = Next(w.state, w.want, w.seen(), w.now.Add(time.Hour)); next.Serving != "b" {
		t.Errorf("outriggerd serves with %s", next.Serving)
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
	seen := Seen{Open: map[string]Open{
		"a": {Authority: authority("a", "d"), Prints: []string{"r1"}}, "b": {Authority: authority("b", "d"), Prints: []string{"r1", "r2"}},
		"c": {Authority: authority("c", "other"), Prints: []string{"r1"}},
	}}
	for name, tc := range map[string]struct {
		leaf *Leaf
		want bool
	}{
		"known":                   {&Leaf{Authority: "b"}, true},
		"known to be another's":   {&Leaf{Authority: "a", Domain: "d", Roots: []string{"r1"}}, false},
		"a root with the old key": {&Leaf{Domain: "d", Roots: []string{"r0", "r2"}}, true},
		"a root of its own":       {&Leaf{Domain: "d", Roots: []string{"r2"}}, true},
		"a root that both have":   {&Leaf{Domain: "d", Roots: []string{"r1"}}, true},
		"another root":            {&Leaf{Domain: "d", Roots: []string{"r3"}}, false},
		"another trust domain":    {&Leaf{Domain: "other", Roots: []string{"r1"}}, false},
		"nobody knows the leaf":   {nil, false},
		"it says nothing at all":  {&Leaf{}, false},
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
			wrong: []Leaf{{Domain: "old", Roots: []string{other + "a"}}, {Domain: "new", Roots: []string{other + "b"}}},
			steps: []string{"serve", "narrow", "rest"}, names: []string{"b"},
		},
		"trust domain": {
			goal:  Goal{Sign: authority("b", "new")},
			wrong: []Leaf{{Domain: "old", Roots: []string{other + "a"}}, {Domain: "new", Roots: []string{other + "a"}}, {Domain: "old", Roots: []string{other + "b"}}},
			steps: []string{"serve", "narrow", "forget", "rest"}, names: []string{"b"},
		},
		"one of several trust domains": {
			goal:  Goal{Sign: authority("b", "new"), Also: []Authority{authority("c", "third")}},
			wrong: []Leaf{{Domain: "old", Roots: []string{other + "a"}}, {Domain: "third", Roots: []string{other + "b"}}},
			steps: []string{"serve", "narrow", "forget", "rest"}, names: []string{"b", "c"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, authority("a", "old"), 3)
			first := Leaf{Domain: "old", Roots: []string{other + "a"}}
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
			w.steps, w.given["shop/p1"] = nil, Leaf{Domain: tc.goal.Sign.TrustDomain, Roots: []string{other + "b"}}
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

// TestUndoneGoalIsOpenedAnew holds that the key and the roots of a goal that was undone do
// not come back when it is wanted again.
func TestUndoneGoalIsOpenedAnew(t *testing.T) {
	for turns := range 6 {
		w := newWorld(t, authority("a", "d"), 2)
		w.want.Goal = Goal{Sign: authority("b", "d")}
		for range turns + 1 {
			w.turn(nil)
		}
		if w.state.Rotation == nil {
			continue
		}
		w.want.Undo = true
		w.run()
		w.turn(nil)
		if opening := Opening(w.state, w.want); len(opening) > 0 {
			t.Errorf("after %d turns and undoing, there is still opened %v", turns, opening)
		}
		w.keys["b"] = ", another"
		w.want.Undo = false
		w.run()
		if got, _ := w.state.Find("b"); w.state.Signing != "b" || got.Roots != "PEM of b, another" {
			t.Errorf("after %d turns and undoing, %s signs, and b is trusted by %q", turns, w.state.Signing, got.Roots)
		}
	}
}

func TestOpening(t *testing.T) {
	a, b, c := authority("a", "d"), authority("b", "d"), authority("c", "d")
	rest := NewState(a, "")
	under := NewState(a, "")
	under.Rotation = &Rotation{Goal: Goal{Sign: b}, Previous: Goal{Sign: a}, Step: StepOpen}
	left := NewState(b, "")
	left.Rotation = &Rotation{Goal: Goal{Sign: b}, Previous: Goal{Sign: a}, Step: StepNarrow}
	for name, tc := range map[string]struct {
		s    State
		want Control
		open []Authority
	}{
		"nothing is wanted":           {rest, Control{}, nil},
		"what holds":                  {rest, Control{Goal: Goal{Sign: a}}, nil},
		"another":                     {rest, Control{Goal: Goal{Sign: b, Also: []Authority{a, c}}}, []Authority{b, c}},
		"what was undone":             {rest, Control{Goal: Goal{Sign: b}, Undo: true}, nil},
		"under way":                   {under, Control{Goal: Goal{Sign: b}}, []Authority{b}},
		"under way, to another":       {under, Control{Goal: Goal{Sign: c}}, []Authority{c}},
		"under way, nothing is said":  {under, Control{}, []Authority{b}},
		"under way, and to be undone": {under, Control{Goal: Goal{Sign: b}, Undo: true}, nil},
		"back to one that is left":    {left, Control{Goal: Goal{Sign: b}, Undo: true}, []Authority{a}},
	} {
		if got := Opening(tc.s, tc.want); !slices.EqualFunc(got, tc.open, func(a, b Authority) bool { return a.Name == b.Name }) {
			t.Errorf("%s: %v are to be open; want %v", name, got, tc.open)
		}
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
