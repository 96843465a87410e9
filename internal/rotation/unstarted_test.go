package rotation

import (
	"strings"
	"testing"
)

// A pod whose proxy starts after outriggerd has moved to a trust domain that it was
// never told of would refuse it for ever.
func TestPodsThatHaveNotStarted(t *testing.T) {
	pod := func(domains ...string) Unstarted { return Unstarted{Name: "shop/late", UID: "late", Domains: domains} }
	cases := map[string]struct {
		reason string
		to     Authority
		pod    Unstarted
		forced string
		waits  bool
	}{
		"MadeBefore":    {"it knows the old domain alone", authority("b", "new"), pod("old"), "", true},
		"MadeMeanwhile": {"it takes outriggerd for real in both", authority("b", "new"), pod("old", "new"), "", false},
		"Forced":        {"people said so", authority("b", "new"), pod("old"), "shop/late", false},
		"AnotherRoot":   {"outriggerd's name stays", authority("b", "old"), pod("old"), "", false},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, authority("a", "old"), 2)
			w.want.Goal, w.later = Goal{Sign: tc.to}, []Unstarted{tc.pod}
			if tc.forced != "" {
				w.want.Forced = []string{tc.forced}
			}
			if !tc.waits {
				w.run()
				return
			}
			var progress Progress
			for range 20 {
				progress = w.turn(nil)
			}
			if w.state.Signing != "a" || progress.Done != 2 || progress.Total != 3 || len(progress.Behind) != 1 {
				t.Fatalf("%s: %s signs, %+v", tc.reason, w.state.Signing, progress)
			}
			behind := progress.Behind[0]
			for _, words := range []string{"trust domain old alone", "delete it", "--force"} {
				if behind.Who != "shop/late" || !strings.Contains(behind.Why, words) {
					t.Errorf("%s: %q; it should say %q", behind.Who, behind.Why, words)
				}
			}
			w.later = nil // it was deleted
			w.run()
		})
	}
}

// Whoever missed a change can be helped by no later step, and holds up no later
// rotation; one back to what it knows is good for it.
func TestPodsThatMissedAChange(t *testing.T) {
	w := newWorld(t, authority("a", "old"), 2)
	w.want.Goal = Goal{Sign: authority("b", "new")}
	w.run()
	w.later = []Unstarted{{Name: "shop/late", UID: "late", Domains: []string{"old"}}}
	w.want.Goal = Goal{Sign: authority("c", "new")}
	w.run()
	w.want.Goal = Goal{Sign: authority("d", "old")}
	w.run()
}

// A pod that is made when the old domain has left is in the way of undoing that.
func TestPodsMadeForTheNewDomainAlone(t *testing.T) {
	w := newWorld(t, authority("a", "old"), 2)
	w.want.Goal = Goal{Sign: authority("b", "new")}
	for phase(w.state) != StepNarrow {
		w.turn(nil)
	}
	w.later, w.want.Undo = []Unstarted{{Name: "shop/late", UID: "late", Domains: []string{"new"}}}, true
	for range 20 {
		w.turn(nil)
	}
	if w.state.Serving != "b" {
		t.Fatalf("outriggerd serves with %s, which the pod does not know", w.state.Serving)
	}
	w.later = nil
	w.run()
	if w.state.Serving != "a" {
		t.Errorf("outriggerd serves with %s", w.state.Serving)
	}
}
