package rotation

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// TestAnyOrder changes the goal at random moments, with pods that come late, go
// away and come back, one that has its certificate from somebody else, an authority that
// dies, and a process that drives it, is busy or forgets everything but the state. The check
// in turn holds after each.
func TestAnyOrder(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // a test
		w := newWorld(t, authority("a", "one"), 4)
		all := []Authority{authority("a", "one"), authority("a-renewed", "one"), authority("b", "one"), authority("c", "two"), {Name: "c", TrustDomain: "two", BuiltIn: &BuiltIn{Secret: "other-c"}}}
		for range 60 {
			switch r.IntN(8) {
			case 0:
				w.want.Goal, w.want.Undo = anyGoal(r, all), false
			case 1:
				w.want.Undo = !w.want.Undo
			case 2:
				name := w.pods[r.IntN(len(w.pods)-1)].Name
				w.away[name] = !w.away[name]
			case 3: // another one takes over
				again, err := ParseState(w.state.JSON())
				if err != nil {
					t.Fatal(err)
				}
				w.state = again
			case 4:
				w.give(len(w.pods)-1, w.state.Trusted[r.IntN(len(w.state.Trusted))])
			case 5:
				if len(w.dead) == 0 && r.IntN(4) == 0 {
					w.dead[w.state.Signing] = true
				}
			default:
				w.busy = r.IntN(3) == 0
				w.turn(r)
			}
		}
		w.away = map[string]bool{}
		w.want.Undo, w.busy = false, false
		for slices.ContainsFunc(w.want.Goal.All(), w.outOfReach) {
			w.want.Goal = anyGoal(r, all)
		}
		w.run()
		w.run()
		if !w.want.Goal.Same(w.state.Holds()) {
			t.Fatalf("seed %d: at rest at %s", seed, w.state.JSON())
		}
	}
}

// outOfReach reports whether the mesh cannot come to an authority: it is dead, or
// another one of its name is trusted.
func (w *world) outOfReach(a Authority) bool {
	trusted, ok := w.state.Find(a.Name)
	return w.dead[a.Name] || ok && !trusted.Same(a)
}

func anyGoal(r *rand.Rand, all []Authority) Goal {
	goal := Goal{Sign: all[r.IntN(len(all))]}
	if other := all[r.IntN(len(all))]; r.IntN(2) == 0 && other.Name != goal.Sign.Name {
		goal.Also = []Authority{other}
	}
	return goal
}

// give has a pod take a certificate from somebody else that leads to an authority.
func (w *world) give(i int, t Trusted) {
	leaf := given(t)
	w.given[w.pods[i].Name], w.pods[i].Leaf = leaf, &leaf
}

func given(t Trusted) Leaf { return Leaf{Domain: t.TrustDomain, Roots: []string{other + t.Name}} }
