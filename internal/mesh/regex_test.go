package mesh

import (
	"strings"
	"testing"
)

func TestCheckRegex(t *testing.T) {
	t.Parallel()
	for expr, ok := range map[string]bool{
		"":                                false,
		"/books/[^/]+":                    true,
		"/" + strings.Repeat("a", 900):    true,
		`/[0-9a-f]{8}(-[0-9a-f]{4}){3}.*`: true,
		`\x{0ff}\pL`:                      true,
		`(?i:a)(?P<n>b)\Qc.d\E`:           true,
		`a**`:                             false,
		`(`:                               false,
		`\C`:                              false,
		`é`:                               false,
		`\x{100}`:                         false,
		`\w{1000}\w{1000}\w{1000}`:        false,
		strings.Repeat("(", 2000):         false,
	} {
		if err := CheckRegex(expr); (err == nil) != ok {
			t.Errorf("CheckRegex(%.40q) = %v, want it to be fine: %v", expr, err, ok)
		}
	}
}
