package annotation

import "fmt"

// An Error is a value that its key does not allow, or a key that means nothing
// where it stands. Its text is meant for the person who wrote it.
type Error struct {
	Object  string // where it was found: "pod label", "namespace annotation" …
	Key     string
	Value   string
	Fault   string // what is wrong, where it is not the value
	Allowed string // in words
	// Otherwise says what holds while it stands there, if that is known.
	Otherwise string
}

// Error returns object, key, value and what is allowed, on one line.
func (e *Error) Error() string {
	if e.Fault != "" {
		return fmt.Sprintf("%s %s %s; use %s", e.Object, e.Key, e.Fault, e.Allowed)
	}
	return fmt.Sprintf("%s %s: %q is not allowed; use %s", e.Object, e.Key, e.Value, e.Allowed)
}
