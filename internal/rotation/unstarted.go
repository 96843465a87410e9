package rotation

import (
	"fmt"
	"slices"
	"strings"
)

// An Unstarted is an injected pod whose proxy does not run yet. Until it has asked
// outriggerd once, it takes that for real in the trust domains that it was made with,
// and in no others.
type Unstarted struct {
	// Name is namespace/name.
	Name    string
	UID     string
	Domains []string
}

// unstarted counts the pods that could never reach outriggerd once that serves in the
// goal's trust domain: they would have to be told of it by the one they refuse. Where
// it serves there already, nothing is gained by waiting for them.
func (s State) unstarted(seen Seen, p *Progress) {
	domain := s.Rotation.Goal.Sign.TrustDomain
	if serving, ok := s.Find(s.Serving); ok && serving.TrustDomain == domain {
		return
	}
	for _, pod := range seen.Unstarted {
		if slices.Contains(pod.Domains, domain) {
			continue
		}
		p.Total++
		if s.Rotation.forced(pod.Name, pod.UID) {
			p.Done++
			continue
		}
		p.behind(pod.Name, fmt.Sprintf("it was made for trust domain %s alone and has not started; delete it so that it is made anew, or name it with --force", strings.Join(pod.Domains, " and ")))
	}
}
