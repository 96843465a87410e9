package limit

import "testing"

func TestPlaces(t *testing.T) {
	var p Places[string]
	for n, step := range []struct {
		leave, take string
		want        bool
	}{
		{take: "a", want: true},
		{take: "a", want: true},
		{take: "a"}, // its places are taken
		{take: "b", want: true},
		{take: "c"}, // all are
		{leave: "b", take: "a"},
		{take: "c", want: true},
		{leave: "a", take: "b", want: true},
	} {
		if step.leave != "" {
			p.Leave(step.leave)
		}
		if got := p.Take(step.take, 2, 3); got != step.want {
			t.Errorf("step %d: %s: got %t, want %t", n, step.take, got, step.want)
		}
	}
	for _, key := range []string{"a", "b", "c"} {
		p.Leave(key)
	}
	if len(p.in) != 0 {
		t.Errorf("who has left is remembered: %v", p.in)
	}
	for n := range 100 {
		if !p.Take("a", 100, 0) {
			t.Errorf("place %d is refused, and there is no bound for all", n)
		}
	}
}
