package xds

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestDiff(t *testing.T) {
	t.Parallel()
	part := func(name, key string, clusters ...string) *Part {
		p := &Part{Name: name, Key: key}
		for _, c := range clusters {
			p.Resources[Cluster] = append(p.Resources[Cluster], &Resource{Name: c, Version: key})
		}
		return p
	}
	set := func(parts ...*Part) *Set { return newSet(parts[:1], parts[1:], "") }
	a := set(part("inbound", "1", "x"), part("b/one:80", "1", "b/one:80", "b/one:80|tcp"), part("b/two:80", "1", "b/two:80"))
	cases := map[string]struct {
		reason           string
		from, to         *Set
		changed, removed []string
	}{
		"Nothing":   {"a Set does not differ from itself", a, a, nil, nil},
		"First":     {"a proxy that has nothing gets all", nil, a, []string{"b/one:80", "b/one:80|tcp", "b/two:80", "x"}, nil},
		"Last":      {"what is not in the new Set goes", a, nil, nil, []string{"b/one:80", "b/one:80|tcp", "b/two:80", "x"}},
		"SameKey":   {"a part that was encoded again is the same part", a, set(part("inbound", "1", "x"), a.outbound[0], a.outbound[1]), nil, nil},
		"Narrower":  {"a changed part can lose resources", a, set(a.own[0], part("b/one:80", "2", "b/one:80"), a.outbound[1]), []string{"b/one:80"}, []string{"b/one:80|tcp"}},
		"Exchanged": {"parts come and go at both ends", a, set(a.own[0], part("a/one:80", "1", "a/one:80"), a.outbound[0], part("c/z:1", "1", "c/z:1")), []string{"a/one:80", "c/z:1"}, []string{"b/two:80"}},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := Diff(tc.from, tc.to)
			var changed []string
			for _, r := range d.Changed[Cluster] {
				changed = append(changed, r.Name)
			}
			if diff := cmp.Diff(tc.changed, changed); diff != "" {
				t.Errorf("%s: changed (-want +got):\n%s", tc.reason, diff)
			}
			if diff := cmp.Diff(tc.removed, d.Removed[Cluster]); diff != "" {
				t.Errorf("%s: removed (-want +got):\n%s", tc.reason, diff)
			}
			if d.Empty() != (tc.changed == nil && tc.removed == nil) {
				t.Errorf("%s: Empty() = %v", tc.reason, d.Empty())
			}
		})
	}
}

func TestResourceByName(t *testing.T) {
	t.Parallel()
	one, tcp, own := &Resource{Name: "b/one:80"}, &Resource{Name: "b/one:80|tcp"}, &Resource{Name: "inbound"}
	s := newSet(
		[]*Part{{Name: "inbound", Resources: [numTypes][]*Resource{Cluster: {own}}}},
		[]*Part{{Name: "b/one:80", Resources: [numTypes][]*Resource{Cluster: {one, tcp}}}}, "")
	for name, want := range map[string]*Resource{"b/one:80": one, "b/one:80|tcp": tcp, "inbound": own, "b/one:8": nil, "": nil} {
		if got := s.Resource(Cluster, name); got != want {
			t.Errorf("Resource(Cluster, %q) = %v, want %v", name, got, want)
		}
		if got := s.Resource(Route, name); got != nil {
			t.Errorf("Resource(Route, %q) = %v; it is a cluster", name, got)
		}
	}
}
