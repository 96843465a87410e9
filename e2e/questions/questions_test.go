package questions

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/outrigger-mesh/outrigger/injector"
	"github.com/outrigger-mesh/outrigger/internal/ingest"
	"github.com/outrigger-mesh/outrigger/internal/manifest"
	"github.com/outrigger-mesh/outrigger/internal/why"
)

// world is what package why makes of objects.
func world(t *testing.T, objects manifest.Objects) why.World {
	t.Helper()
	cidrs := []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")}
	settings := injector.Settings{SystemNamespace: "outrigger-system"}
	objs, err := manifest.Complete(objects, settings, cidrs)
	if err != nil {
		t.Fatal(err)
	}
	snap, _ := ingest.Build(objs, ingest.Options{
		AllowEgress: true, TrustDomain: "cluster.local", ClusterDomain: "cluster.local", ServiceCIDRs: cidrs, SystemNamespace: "outrigger-system",
	})
	return why.World{
		Snapshot: snap, Injector: settings, Namespaces: objs.Namespaces, Pods: objs.Pods, Services: objs.Services, Deployments: objects.Deployments,
	}
}

// TestAnswers asks every question of the table about the YAML alone, and again
// after the change that an answer proposes.
func TestAnswers(t *testing.T) {
	stories, err := Stories("")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range stories {
		objects, err := manifest.Parse([]byte(s.Objects), "default")
		if err != nil {
			t.Fatalf("%s: %v", s.Name, err)
		}
		for _, c := range s.Calls {
			t.Run(s.Name+"/"+c.Name, func(t *testing.T) {
				a, err := world(t, objects).Call(c.Question())
				if err != nil {
					t.Fatal(err)
				}
				c.check(t, a)
				if !c.Change {
					return
				}
				changed, err := Apply(objects, *a.Change)
				if err != nil {
					t.Fatal(err)
				}
				if again, err := world(t, changed).Call(c.Question()); err != nil || again.Verdict != why.Allowed {
					t.Errorf("with the change that is proposed it is %s (%v):\n%s", again.Verdict, err, again.Text())
				}
			})
		}
	}
}

func (c Call) check(t *testing.T, a why.CallAnswer) {
	t.Helper()
	if a.Verdict != c.Verdict || a.Side != c.Side || a.Reason != c.Reason {
		t.Errorf("%s at %q, %s; want %s at %q, %s\n%s", a.Verdict, a.Side, a.Reason, c.Verdict, c.Side, c.Reason, a.Text())
	}
	if proposed := a.Change != nil && (a.Change.Command != "" || a.Change.YAML != ""); proposed != c.Change {
		t.Errorf("a change that can be applied: %t, want %t\n%s", proposed, c.Change, a.Text())
	}
	if diff := cmp.Diff(c.Servers, Servers(a)); diff != "" {
		t.Errorf("servers (-want +got):\n%s\n%s", diff, a.Text())
	}
	if c.TCP() != (len(c.Status) == 0) || slices.Contains(c.Status, 200) && c.Verdict == why.Denied {
		t.Errorf("the statuses %v do not go with the call", c.Status)
	}
}
