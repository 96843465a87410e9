// Package whole has the numbers of SMI objects that should be whole. The mesh's own
// CRDs let nothing else in, but OSM's and SMI's take any number, and one object that
// cannot be read would keep all others of its kind from being listed.
package whole

import (
	"math"
	"strconv"
)

// A Number is a number as JSON has it. Reading it never fails; whoever uses it asks
// for its value. The zero Number is 0.
//
// +kubebuilder:validation:Type=integer
// +kubebuilder:validation:Format=int32
type Number struct{ text string }

// Of returns the Number of n.
func Of(n int64) Number { return Number{strconv.FormatInt(n, 10)} }

// Written returns the Number that stands so in JSON.
func Written(text string) Number { return Number{text} }

// String returns how n is written.
func (n Number) String() string {
	if n.text == "" {
		return "0"
	}
	return n.text
}

// exact is up to where every whole number has a float64 of its own.
const exact = 1 << 53

// Value returns what n is, if it is whole and not so large that JSON's readers
// disagree about it. 5.0 and 5e3 are whole.
func (n Number) Value() (int64, bool) {
	if i, err := strconv.ParseInt(n.String(), 10, 64); err == nil {
		return i, i >= -exact && i <= exact
	}
	f, err := strconv.ParseFloat(n.String(), 64)
	if err != nil || f != math.Trunc(f) || math.Abs(f) > exact {
		return 0, false
	}
	return int64(f), true
}

// UnmarshalJSON takes whatever stands there.
func (n *Number) UnmarshalJSON(text []byte) error {
	n.text = string(text)
	if n.text == "null" {
		n.text = ""
	}
	return nil
}

// MarshalJSON writes it as it was read.
func (n Number) MarshalJSON() ([]byte, error) { return []byte(n.String()), nil }
