package server

import (
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/outrigger-mesh/outrigger/internal/xds"
)

// A feed is what one stream knows of one type: what the proxy asked for, what it
// was sent, and what it has not acknowledged.
//
// Envoy subscribes to all clusters and listeners, and by name to what these
// refer to, which sooner or later is every other resource of its Set. So a feed
// remembers only the exceptions: as a rule both maps are empty, however large
// the mesh is. A nil Set is one with nothing in it.
type feed struct {
	typ   xds.Type
	asked bool     // the proxy's first request has come
	sent  *xds.Set // what the proxy was sent, removals aside
	begun bool     // something was answered, be it with nothing
	acked *xds.Set // what the proxy has said that it has
	// refused says that the last answer to a response was a refusal.
	refused bool
	// known are the versions that the proxy said it has, from an earlier stream.
	// They count for the first answer only.
	known map[string]string
	// wanted are names that must be answered.
	wanted map[string]struct{}
	// unasked are in the Set but not subscribed to; missing the other way round.
	unasked, missing map[string]struct{}
	// gone are names that the proxy is to forget when everything else was sent.
	gone map[string]struct{}

	pending []flight
}

// A flight is a response that is not yet acknowledged. Of what it held it knows
// only a few, for people: a proxy may leave many without an answer.
type flight struct {
	nonce     string
	set       *xds.Set
	resources []*xds.Resource
	removed   []string
	published time.Time // of the snapshot that it is due to; zero if the proxy asked
}

// wildcard says that the proxy has all resources of the type without naming
// them.
func (f *feed) wildcard() bool { return f.typ == xds.Cluster || f.typ == xds.Listener }

// wildcardName is what a subscription to everything may be called.
const wildcardName = "*"

func (f *feed) has(name string) bool { return f.sent != nil && f.sent.Resource(f.typ, name) != nil }

// begin takes the first request of a stream.
func (f *feed) begin(known map[string]string) {
	f.asked, f.known = true, known
}

// subscribe takes names that the proxy wants. Each is answered, even when the
// proxy was sent it before.
func (f *feed) subscribe(names []string) {
	for _, name := range names {
		if f.wildcard() && name == wildcardName {
			continue
		}
		add(&f.wanted, name)
		if f.wildcard() {
			continue
		}
		if f.has(name) {
			remove(&f.unasked, name)
		} else {
			add(&f.missing, name)
		}
	}
}

// unsubscribe takes names that the proxy has no more use for.
func (f *feed) unsubscribe(names []string) {
	for _, name := range names {
		remove(&f.wanted, name)
		if f.wildcard() {
			continue
		}
		if f.has(name) {
			add(&f.unasked, name)
		} else {
			remove(&f.missing, name)
		}
	}
}

// move makes to what the proxy has, and returns what must be sent for that. The
// slice may be shared. What is gone waits for farewell.
func (f *feed) move(to *xds.Set, delta *xds.Delta) []*xds.Resource {
	changed := delta.Changed[f.typ]
	if !f.wildcard() {
		changed = f.subscribed(changed)
	}
	if len(f.known) > 0 {
		changed = slices.DeleteFunc(slices.Clone(changed), func(r *xds.Resource) bool { return f.known[r.Name] == r.Version })
	}
	for _, name := range delta.Removed[f.typ] {
		f.lost(name)
	}
	if !f.begun && f.wildcard() {
		for name := range f.known {
			if to.Resource(f.typ, name) == nil {
				add(&f.gone, name)
			}
		}
	}
	f.sent = to
	return changed
}

// subscribed returns those of changed that the proxy subscribed to, and takes
// note of new ones that it did not.
func (f *feed) subscribed(changed []*xds.Resource) []*xds.Resource {
	all := true
	for _, r := range changed {
		if _, ok := f.missing[r.Name]; ok {
			continue
		}
		if !f.has(r.Name) {
			add(&f.unasked, r.Name)
		}
		if _, ok := f.unasked[r.Name]; ok {
			all = false
		}
	}
	if !all {
		changed = slices.DeleteFunc(slices.Clone(changed), func(r *xds.Resource) bool {
			_, ok := f.unasked[r.Name]
			return ok
		})
	}
	for _, r := range changed {
		remove(&f.missing, r.Name)
	}
	return changed
}

// lost takes note of a name that the new Set does not have.
func (f *feed) lost(name string) {
	if f.wildcard() {
		add(&f.gone, name)
		return
	}
	if _, ok := f.unasked[name]; ok {
		remove(&f.unasked, name)
		return
	}
	add(&f.missing, name)
	add(&f.gone, name)
}

// answers returns what the proxy asked for by name and has not just been sent:
// resources, and names for which there is none.
func (f *feed) answers(just []*xds.Resource) (found []*xds.Resource, none []string) {
	if len(f.wanted) == 0 {
		return nil, nil
	}
	for _, r := range just {
		remove(&f.wanted, r.Name)
	}
	for _, name := range slices.Sorted(maps.Keys(f.wanted)) {
		var r *xds.Resource
		if f.sent != nil {
			r = f.sent.Resource(f.typ, name)
		}
		switch {
		case r == nil:
			none = append(none, name)
			remove(&f.gone, name)
		case f.begun || f.known[name] != r.Version:
			found = append(found, r)
		}
	}
	f.wanted = nil
	return found, none
}

// farewell returns the names that the proxy is to forget.
func (f *feed) farewell() []string {
	var names []string
	for name := range f.gone {
		if _, subscribed := f.missing[name]; subscribed || f.wildcard() && !f.has(name) {
			names = append(names, name)
		}
	}
	f.gone = nil
	slices.Sort(names)
	return names
}

// land takes the flight of that nonce, and those before it, off the list. It
// reports false for a nonce that is not on it.
func (f *feed) land(nonce string) (flight, bool) {
	i := slices.IndexFunc(f.pending, func(p flight) bool { return p.nonce == nonce })
	if i < 0 {
		return flight{}, false
	}
	landed := f.pending[i]
	f.pending = slices.Delete(f.pending, 0, i+1)
	if len(f.pending) == 0 {
		f.pending = nil
	}
	return landed, true
}

// bringing reports whether resources are on their way to the proxy.
func (f *feed) bringing() bool {
	return slices.ContainsFunc(f.pending, func(p flight) bool { return len(p.resources) > 0 })
}

// mostNames is how many names of a flight a log gets.
const mostNames = 20

// few returns the first items, in a slice that holds on to nothing else. One more
// than are shown tells that there were more.
func few[T any](items []T) []T { return slices.Clone(items[:min(len(items), mostNames+1)]) }

// names returns what a flight held, shortened for a log.
func (p flight) names() string {
	var names []string
	for _, r := range p.resources {
		names = append(names, r.Name)
	}
	names = append(names, p.removed...)
	if len(names) > mostNames {
		names = append(names[:mostNames:mostNames], "...")
	}
	return strings.Join(names, " ")
}

func add(set *map[string]struct{}, name string) {
	if *set == nil {
		*set = map[string]struct{}{}
	}
	(*set)[name] = struct{}{}
}

// remove lets go of the map when nothing is left, because maps do not shrink.
func remove(set *map[string]struct{}, name string) {
	delete(*set, name)
	if len(*set) == 0 {
		*set = nil
	}
}
