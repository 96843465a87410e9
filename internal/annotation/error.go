package annotation

import "fmt"

// An Error is a value that its key does not allow. Its text is meant for the
// person who wrote the value.
type Error struct {
	Object  string // where it was found: "pod label", "namespace annotation" …
	Key     string
	Value   string
	Allowed string // in words
}

// Error returns object, key, value and what is allowed, on one line.
func (e *Error) Error() string {
	return fmt.Sprintf("%s %s: %q is not allowed; use %s", e.Object, e.Key, e.Value, e.Allowed)
}
