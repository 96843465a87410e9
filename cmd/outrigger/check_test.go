package main

import (
	"strings"
	"testing"
)

// TestCheckPolicy wants every fault once, in order, and a status that says whether
// there is one.
func TestCheckPolicy(t *testing.T) {
	const faulty = "../../internal/scenario/testdata/policies-that-cannot-be-honoured/in.yaml"
	out, _, status := runStatus(t, "", "check", "policy", "-f", faulty, "--set", "trafficPolicy=enforced")
	if status != 1 {
		t.Errorf("faults give status %d", status)
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	for _, want := range []string{
		"TrafficTarget shop/other-namespace  OtherNamespace: the destination is in namespace elsewhere; it must be in that of the TrafficTarget",
		"TrafficSplit shop/no-apex  ApexNotFound: service gone does not exist or has no TCP port",
	} {
		if n := strings.Count(out, want+"\n"); n != 1 {
			t.Errorf("%d lines say %q", n, want)
		}
	}
	if len(lines) < 20 || !strings.HasPrefix(lines[0], "HTTPRouteGroup ") || !strings.HasPrefix(lines[len(lines)-1], "TrafficTarget ") {
		t.Errorf("not all of them, or not in order:\n%s", out)
	}
	if out, _, _ = runStatus(t, "", "check", "policy", "-f", faulty, "-o", "json"); !strings.Contains(out, `"reason": "SplitConflict"`) {
		t.Errorf("as JSON: %s", out)
	}

	for name, c := range map[string]struct {
		args   []string
		status int
		says   string
	}{
		"nothing wrong": {args: []string{"-f", whyShop}, says: "Everything is honoured"},
		"as JSON":       {args: []string{"-f", whyShop, "-o", "json"}, says: `"problems": []`},
		"elsewhere":     {args: []string{"-f", faulty, "-n", "calm"}, says: "Everything is honoured"},
		"there":         {args: []string{"-f", faulty, "-n", "shop"}, status: 1, says: "TrafficSplit shop/no-apex"},
		"no such file":  {args: []string{"-f", "gone.yaml"}, status: 2},
		"no such form":  {args: []string{"-f", whyShop, "-o", "yaml"}, status: 2},
		"an argument":   {args: []string{"shop"}, status: 2},
	} {
		out, told, status := runStatus(t, "", append([]string{"check", "policy"}, c.args...)...)
		if status != c.status || !strings.Contains(out, c.says) {
			t.Errorf("%s: status %d, %q, %q; want %d and %q", name, status, out, told, c.status, c.says)
		}
	}
}
