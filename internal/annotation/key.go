package annotation

import "strings"

// Prefix is what every key of ours begins with.
const Prefix = "outrigger.dev/"

// A Place is a kind of object on which a key may stand. Places add up.
type Place uint8

// The places. A key of a pod stands, in a Deployment and the like, on its pod
// template.
const (
	Namespace Place = 1 << iota
	Service
	Pod
	TrafficTarget
	TCPRoute
)

// String names the places, from the widest to the narrowest.
func (p Place) String() string {
	var names []string
	for i, name := range []string{"namespace", "service", "pod", "TrafficTarget", "TCPRoute"} {
		if p&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	return strings.Join(names, ", ")
}

// A Form says how a key is written. The zero Form is an annotation.
type Form uint8

// The forms.
const (
	AsAnnotation Form = iota
	AsLabel
	AsEither // a label, which wins, or an annotation
)

// String returns the form in words.
func (f Form) String() string {
	return [...]string{"annotation", "label", "label or annotation"}[f]
}

// A Key is one label or annotation that a user may write. A key whose values
// differ between places has an entry for each.
type Key struct {
	Name string
	OSM  string // OSM's name for it, if it has one
	On   Place
	As   Form
	// Type says what a value is, Unit in what it is counted, Default what holds
	// without one, Allowed which values there are, all in words.
	Type, Unit, Default, Allowed string
	Effect                       string
	// Otherwise says what holds instead of a value that is not allowed.
	Otherwise string
	// Valid reports whether a value is allowed.
	Valid func(value string) bool
}

// A subject is a group of keys with an introduction, as the page about them has it.
type subject struct {
	title, text string
	keys        []Key
}

// subjects returns the registry. Each file of this package that is about a subject
// has its part.
func subjects() []subject {
	return []subject{injectSubject(), proxySubject(), identitySubject(), redirectSubject(), policySubject(), trafficSubject(), observeSubject(), targetSubject()}
}

// Keys returns every key that a user may write, by subject.
func Keys() []Key {
	var keys []Key
	for _, s := range subjects() {
		keys = append(keys, s.keys...)
	}
	return keys
}

// names returns the names under which a key may be written.
func (k Key) names() []string {
	if k.OSM == "" {
		return []string{k.Name}
	}
	return []string{k.Name, k.OSM}
}
