package iptables

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Differences compares what Rules returned with what iptables-save prints, and
// returns one line for each difference; none means that the kernel holds exactly
// what was meant. Our chains must be equal, rule by rule; of the other chains
// only the jumps to ours matter. Counters, comments and the order of chains do not.
func Differences(want, saved string) []string {
	meant, found := parse(want), parse(saved)
	var diffs []string
	for _, chain := range []string{inboundChain, outboundChain} {
		if !found.chains[chain] {
			diffs = append(diffs, fmt.Sprintf("chain %s does not exist", chain))
			continue
		}
		diffs = append(diffs, differences(meant.rules[chain], found.rules[chain])...)
	}
	for _, jump := range []string{inboundJump, outboundJump} {
		if !found.has(jump) {
			diffs = append(diffs, "missing: "+jump)
		}
	}
	return diffs
}

func differences(meant, found []string) []string {
	var diffs []string
	for i := range max(len(meant), len(found)) {
		switch {
		case i >= len(found):
			diffs = append(diffs, "missing: "+meant[i])
		case i >= len(meant):
			diffs = append(diffs, "unexpected: "+found[i])
		case meant[i] != found[i]:
			diffs = append(diffs, fmt.Sprintf("found %s instead of %s", found[i], meant[i]))
		}
	}
	return diffs
}

// Changes returns what must be given to iptables-restore --noflush so that a
// kernel whose iptables-save prints saved does what want says: want without the
// jumps that are there already, and nothing at all where nothing differs. Hence
// applying twice is applying once.
func Changes(want, saved string) string {
	if len(Differences(want, saved)) == 0 {
		return ""
	}
	found := parse(saved)
	var text strings.Builder
	for line := range strings.Lines(want) {
		rule := strings.TrimSpace(line)
		if rule == inboundJump && found.has(inboundJump) || rule == outboundJump && found.has(outboundJump) {
			continue
		}
		text.WriteString(line)
	}
	return text.String()
}

// InUse tells whether the nat table that iptables-save printed holds any rule.
func InUse(saved string) bool { return len(parse(saved).rules) > 0 }

// A table is the nat table as restore text or a dump has it.
type table struct {
	chains map[string]bool     // declared
	rules  map[string][]string // by chain, in order, as parsed
}

func (t table) has(rule string) bool {
	return slices.Contains(t.rules[strings.Fields(rule)[1]], rule)
}

// parse reads the nat table, passing over everything that it does not know: the
// dump may hold rules of anybody.
func parse(text string) table {
	t := table{chains: map[string]bool{}, rules: map[string][]string{}}
	inNAT := false
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		switch {
		case len(words) == 0:
		case strings.HasPrefix(words[0], "*"):
			inNAT = words[0] == "*nat"
		case !inNAT:
		case strings.HasPrefix(words[0], ":"):
			t.chains[words[0][1:]] = true
		case words[0] == "-A" && len(words) > 1:
			t.rules[words[1]] = append(t.rules[words[1]], normal(words))
		}
	}
	return t
}

// normal puts one space between words and one spelling into addresses: the C
// library writes some IPv6 addresses in the dotted form of IPv4.
func normal(words []string) string {
	words = slices.Clone(words)
	for i := 1; i < len(words); i++ {
		if words[i-1] != "-s" && words[i-1] != "-d" {
			continue
		}
		if cidr, err := netip.ParsePrefix(words[i]); err == nil {
			words[i] = cidr.String()
		}
	}
	return strings.Join(words, " ")
}
