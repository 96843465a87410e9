package xds

import (
	"slices"
	"strings"
)

// A Delta is what turns one Set into another.
type Delta struct {
	// Changed holds, by Type, the resources that are new or have a new version,
	// sorted by name.
	Changed [numTypes][]*Resource
	// Removed holds, by Type, the names that are gone, sorted.
	Removed [numTypes][]string
}

// Empty reports whether there is nothing to send.
func (d *Delta) Empty() bool {
	for _, t := range Types() {
		if len(d.Changed[t])+len(d.Removed[t]) > 0 {
			return false
		}
	}
	return true
}

// Diff returns what turns from into to; a nil Set is an empty one. Parts that
// both share cost one comparison each.
func Diff(from, to *Set) *Delta {
	d := &Delta{}
	if from == to {
		return d
	}
	if from == nil {
		from = &Set{}
	}
	if to == nil {
		to = &Set{}
	}
	d.parts(from.own, to.own)
	d.parts(from.outbound, to.outbound)
	for _, t := range Types() {
		slices.SortFunc(d.Changed[t], func(a, b *Resource) int { return strings.Compare(a.Name, b.Name) })
		slices.Sort(d.Removed[t])
	}
	return d
}

// parts merges two lists that are sorted by name.
func (d *Delta) parts(from, to []*Part) {
	if len(from) == len(to) && (len(from) == 0 || &from[0] == &to[0]) {
		return // the very same list
	}
	var none Part
	for len(from) > 0 || len(to) > 0 {
		switch {
		case len(to) == 0 || len(from) > 0 && from[0].Name < to[0].Name:
			d.part(from[0], &none)
			from = from[1:]
		case len(from) == 0 || to[0].Name < from[0].Name:
			d.part(&none, to[0])
			to = to[1:]
		default:
			if from[0] != to[0] && from[0].Key != to[0].Key {
				d.part(from[0], to[0])
			}
			from, to = from[1:], to[1:]
		}
	}
}

func (d *Delta) part(from, to *Part) {
	for _, t := range Types() {
		for _, r := range to.Resources[t] {
			if old := from.resource(t, r.Name); old == nil || old.Version != r.Version {
				d.Changed[t] = append(d.Changed[t], r)
			}
		}
		for _, r := range from.Resources[t] {
			if to.resource(t, r.Name) == nil {
				d.Removed[t] = append(d.Removed[t], r.Name)
			}
		}
	}
}
