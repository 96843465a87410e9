package mesh

import (
	"errors"
	"fmt"
	"regexp"
	"regexp/syntax"
	"strings"
)

// maxRegexCost bounds the compiled size of a regular expression: instructions,
// each counted as often as it has ranges. Envoy's expression is at most a few
// times as large, far below what a proxy admits (see package bootstrap).
const maxRegexCost = 10_000

// wideEscape is a character that Envoy, which compares bytes, does not know.
var wideEscape = regexp.MustCompile(`\\x\{0*[1-9A-Fa-f][0-9A-Fa-f]{2,}\}`)

// CheckRegex reports why Envoy would refuse a regular expression, or nil. Both
// Go and Envoy speak RE2; Envoy compares bytes instead of characters and bounds
// the size.
func CheckRegex(expr string) error {
	if expr == "" {
		return errors.New("the regular expression is empty; .* matches everything")
	}
	if strings.ContainsFunc(expr, func(r rune) bool { return r > 0x7f }) {
		return errors.New("only ASCII characters are allowed; paths are compared percent-encoded")
	}
	if wide := wideEscape.FindString(expr); wide != "" {
		return fmt.Errorf("%s; at most \\x{FF} is allowed", wide)
	}
	parsed, err := syntax.Parse(expr, syntax.Perl)
	if err != nil {
		return err
	}
	program, err := syntax.Compile(parsed.Simplify())
	if err != nil {
		return err
	}
	cost := 0
	for _, i := range program.Inst {
		cost += 1 + len(i.Rune)/2
	}
	if cost > maxRegexCost {
		return fmt.Errorf("the regular expression is too large: %d steps; at most %d are allowed", cost, maxRegexCost)
	}
	return nil
}
