package why

import (
	"fmt"
	"strings"
)

// Text writes an answer for a person. Its first line is the verdict.
func (a CallAnswer) Text() string {
	var out strings.Builder
	word := map[Verdict]string{Allowed: "Allowed", Denied: "Denied", Partly: "Partly denied"}[a.Verdict]
	may := "may"
	if a.Verdict == Denied {
		may = "may not"
	}
	if a.Verdict == Partly {
		may = "may not always"
	}
	fmt.Fprintf(&out, "%s: %s %s %s.\n", word, a.Caller.Identity, may, a.what())
	fmt.Fprintln(&out, a.Message)
	a.writeBackends(&out)
	for _, n := range a.Notes {
		fmt.Fprintln(&out, n)
	}
	if len(a.NearMisses) > 0 {
		fmt.Fprintln(&out, "\nWhat comes near:")
		for _, m := range a.NearMisses {
			fmt.Fprintf(&out, "- %s: %s\n", m.Object, m.Differs)
		}
	}
	if c := a.Change; c != nil {
		fmt.Fprintf(&out, "\n%s\n", c.Text)
		for _, block := range []string{c.Command, c.YAML} {
			if block = strings.TrimSuffix(block, "\n"); block != "" {
				fmt.Fprintf(&out, "\n  %s\n", strings.ReplaceAll(block, "\n", "\n  "))
			}
		}
	}
	return out.String()
}

// what says what the caller would do.
func (a CallAnswer) what() string {
	at := a.Destination.Service
	if at == "" {
		at = fmt.Sprintf("%s:%d", a.Destination.Host, a.Destination.Port)
	}
	if a.Request.Method == "" || a.Destination.Protocol == "tcp" {
		return "connect to " + at
	}
	return fmt.Sprintf("%s %s at %s", a.Request.Method, a.Request.Path, at)
}

func (a CallAnswer) writeBackends(out *strings.Builder) {
	if len(a.Backends) == 1 && a.Split == "" {
		b := a.Backends[0]
		if b.Side == Client {
			return // it goes nowhere
		}
		fmt.Fprintf(out, "It goes to %s, %s.\n", b.who(), b.how())
		return
	}
	if a.Split != "" {
		fmt.Fprintf(out, "%s shares it out:\n", a.Split)
	}
	for _, b := range a.Backends {
		line := fmt.Sprintf("- %.4g %% to %s, %s", b.Percent, b.who(), b.how())
		switch {
		case b.Side == Client:
			line = fmt.Sprintf("- %.4g %% to %s", b.Percent, b.Service)
		case b.Service != "" && b.Service != a.Destination.Service:
			line = fmt.Sprintf("- %.4g %% to %s: %s, %s", b.Percent, b.Service, b.who(), b.how())
		}
		if b.Verdict == Denied {
			line += ", denied"
		}
		// What the message says already is not said again.
		if !strings.EqualFold(sentence(b.Because), a.Message) && !strings.HasSuffix(a.Message, ": "+b.Because+".") {
			line += "; " + b.Because
		}
		fmt.Fprintln(out, line)
	}
}

func (b Backend) who() string {
	n := "no endpoint"
	if b.Endpoints == 1 {
		n = "1 endpoint"
	} else if b.Endpoints > 1 {
		n = fmt.Sprintf("%d endpoints", b.Endpoints)
	}
	if b.Server == "" {
		return n
	}
	return n + " of " + b.Server
}

func (b Backend) how() string {
	if b.Transport == plain {
		return "in plain text"
	}
	return "by mutual TLS"
}

// Text writes an answer for a person. Its first line is what the pod has.
func (a PodAnswer) Text() string {
	has := "has no proxy"
	if a.Proxy {
		has = "has a proxy"
	}
	would := map[string]string{
		"injected": "Made anew, it would get one", "skipped": "Made anew, it would get none", "denied": "Made anew, it would not be admitted",
	}[a.Outcome]
	text := fmt.Sprintf("Pod %s %s.\n%s (%s): %s.\n", a.Pod, has, would, a.Reason, strings.TrimSuffix(a.Message, "."))
	if a.Do != "" {
		text += a.Do + "\n"
	}
	return text
}
