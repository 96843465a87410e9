package main

import (
	"fmt"
	"testing"
)

func TestGenerations(t *testing.T) {
	var g generations
	g.published("old", 1)
	g.published("both", 2)
	g.published("both", 3) // another one signs, and the trust is the same
	for key, want := range map[string]int64{"old": 1, "both": 3, "": 0, "unknown": 0} {
		if got := g.generation(key); got != want {
			t.Errorf("a proxy that acknowledged %q is at generation %d; want %d", key, got, want)
		}
	}
	if g.newest() != 3 {
		t.Errorf("the newest is %d; want 3", g.newest())
	}
	for i := range int64(2 * keptKeys) {
		g.published(fmt.Sprint(i), 4+i)
	}
	if len(g.of) != keptKeys || len(g.keys) != keptKeys || g.generation("both") != 0 {
		t.Errorf("%d and %d keys are kept; want %d, the newest", len(g.of), len(g.keys), keptKeys)
	}
}

// TestGenerationsThatGoBack holds that nobody counts as trusting what comes, when the
// state of the authorities is restored from a backup.
func TestGenerationsThatGoBack(t *testing.T) {
	var g generations
	g.published("old", 8)
	g.published("both", 9)
	g.published("old", 3)
	for key, want := range map[string]int64{"old": 3, "both": 0} {
		if got := g.generation(key); got != want {
			t.Errorf("a proxy that acknowledged %q is at generation %d; want %d", key, got, want)
		}
	}
	if g.newest() != 3 {
		t.Errorf("the newest is %d; want 3", g.newest())
	}
	g.published("both", 4)
	if got := g.generation("both"); got != 4 || len(g.keys) != 2 {
		t.Errorf("afterwards a proxy is at generation %d, of keys %v; want 4", got, g.keys)
	}
}
