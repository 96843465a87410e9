package rotation

import (
	"slices"
	"time"
)

// A Leaf is what is known of a workload's certificate.
type Leaf struct {
	// Authority that signed it; empty where that is not known any more.
	Authority string `json:"authority,omitempty"`
	// Domain is its trust domain, Roots the SHA-256 of the roots that it led to, in hex,
	// sorted: there are several where a root was renewed with its key.
	Domain string    `json:"domain,omitempty"`
	Roots  []string  `json:"roots,omitempty"`
	End    time.Time `json:"end,omitzero"`
}

// A Pod is an injected one that runs, and what replicas know of it.
type Pod struct {
	// Name is namespace/name.
	Name string
	UID  string
	// Connected tells that it has a stream to some replica.
	Connected bool
	// Trusts is the highest generation whose trust its proxy acknowledged.
	Trusts int64
	// Leaf is nil where nobody knows it.
	Leaf *Leaf
	at   int64 // when that was
}

// A Replica is an outriggerd that runs.
type Replica struct {
	Name string
	// Heard tells that it has reported of late. Generation is the one it follows,
	// Serving the authority of its own certificate.
	Heard      bool
	Generation int64
	Serving    string
}

// Seen is what the elected replica sees of the mesh.
type Seen struct {
	Pods     []Pod
	Replicas []Replica
	// Unstarted are the injected pods whose proxies have not started, by name.
	Unstarted []Unstarted
	// Open are the authorities that this replica has opened, or tried to, by name.
	Open map[string]Open
}

// An Open authority is one that the elected replica has opened, or tried to.
type Open struct {
	Authority Authority
	// Roots are PEM, and Prints the SHA-256 of each; none where it is not open.
	Roots  string
	Prints []string
	// Failed says why it could not be opened.
	Failed string
}

// open returns what is known of an authority, and nothing of another one that has or
// had its name.
func (seen Seen) open(a Authority) Open {
	if o := seen.Open[a.Name]; o.Authority.Same(a) {
		return o
	}
	return Open{}
}

// signedBy reports whether a leaf was signed by one of the named authorities. A
// leaf of which nobody knows who signed it counts by the roots that it leads to.
func (seen Seen) signedBy(leaf *Leaf, s State, names ...string) bool {
	if leaf == nil {
		return false
	}
	if leaf.Authority != "" {
		return slices.Contains(names, leaf.Authority)
	}
	return slices.ContainsFunc(names, func(name string) bool {
		t, ok := s.Find(name)
		return ok && t.TrustDomain == leaf.Domain && slices.ContainsFunc(seen.open(t.Authority).Prints, func(print string) bool {
			return slices.Contains(leaf.Roots, print)
		})
	})
}

// Behind is somebody that a step waits for.
type Behind struct {
	Who string `json:"who"`
	Why string `json:"why"`
}

// Progress is how far a step has come.
type Progress struct {
	// What is counted, in words for people: "trust the new authority".
	What string `json:"what,omitempty"`
	// Done of Total proxies, and the same of replicas of outriggerd.
	Done     int `json:"done"`
	Total    int `json:"total"`
	Replicas int `json:"replicas"`
	Of       int `json:"of"`
	// Behind are the first of those that are waited for.
	Behind []Behind `json:"behind,omitempty"`
	// Problem is why it cannot go on, if that is not somebody who is behind.
	Problem string `json:"problem,omitempty"`
}

// complete reports whether nobody is behind.
func (p Progress) complete() bool { return p.Done == p.Total && p.Replicas == p.Of && p.Problem == "" }

// mostBehind bounds how many are named.
const mostBehind = 20

func (p *Progress) behind(who, why string) {
	if len(p.Behind) < mostBehind {
		p.Behind = append(p.Behind, Behind{Who: who, Why: why})
	}
}
