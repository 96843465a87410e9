package rotation

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// A Trusted authority is one whose certificates are good.
type Trusted struct {
	Authority
	// Roots are its roots, PEM, as the elected replica knows them. A replica that
	// cannot reach the authority trusts these.
	Roots string `json:"roots,omitempty"`
	// Since is the generation from which on it is trusted; 0 when everybody is known
	// to trust it.
	Since int64 `json:"since,omitempty"`
	// Used tells that it may have signed a certificate that is still in use.
	Used bool `json:"used,omitempty"`
}

// A State is what every replica follows, and what is under way. Only the elected
// replica writes it.
type State struct {
	// Generation counts the changes of everything that replicas follow.
	Generation int64 `json:"generation"`
	// Trusted are by name. Signing signs for workloads, Serving for outriggerd
	// itself; both name one of Trusted.
	Trusted []Trusted `json:"trusted"`
	Signing string    `json:"signing"`
	Serving string    `json:"serving"`
	// Fading are trust domains that nobody vouches for any more, and whose names are
	// still known, because requests over open connections bear them.
	Fading []string `json:"fading,omitempty"`
	// Chart is the authority of the chart's values that the mesh has followed last: a
	// changed value does nothing by itself, and is told.
	Chart Authority `json:"chart,omitzero"`
	// Changed is when Generation was counted last.
	Changed time.Time `json:"changed,omitzero"`
	// Rotation is what is under way; nil at rest.
	Rotation *Rotation `json:"rotation,omitempty"`
	// Last is the rotation that ended last.
	Last *Rotation `json:"last,omitempty"`
}

// A Rotation leads from one authority to another.
type Rotation struct {
	From string `json:"from"`
	Goal Goal   `json:"goal"`
	// By says who wants it, in words for people.
	By      string    `json:"by,omitempty"`
	Started time.Time `json:"started,omitzero"`
	Ended   time.Time `json:"ended,omitzero"`
	// Previous are the authorities that were trusted before, so that it can be undone.
	Previous Goal `json:"previous"`
	Step     Step `json:"step"`
	// StepSince is when Step began.
	StepSince time.Time `json:"stepSince,omitzero"`
	Paused    bool      `json:"paused,omitempty"`
	// Forced are pods that nothing waits for, as in Control.
	Forced []string `json:"forced,omitempty"`
	// Problem is why it cannot go on, where that is not somebody who is behind.
	Problem string `json:"problem,omitempty"`
	// Undone tells that the goal is what was there before.
	Undone bool `json:"undone,omitempty"`
}

// A Goal is what should hold in the end: Sign signs, and it and Also are trusted.
type Goal struct {
	Sign Authority   `json:"sign"`
	Also []Authority `json:"also,omitempty"`
	// Recover goes there at once, without waiting for anybody: for a mesh whose root
	// has ended, where nobody trusts anybody any more.
	Recover bool `json:"recover,omitempty"`
}

// Same reports whether two goals are one.
func (g Goal) Same(other Goal) bool {
	same := func(a, b Authority) bool { return a.Name == b.Name && a.Same(b) }
	return same(g.Sign, other.Sign) && slices.EqualFunc(g.Also, other.Also, same)
}

// All are the authorities that are trusted in the end.
func (g Goal) All() []Authority { return append([]Authority{g.Sign}, g.Also...) }

func (g Goal) wants(name string) bool {
	return slices.ContainsFunc(g.All(), func(a Authority) bool { return a.Name == name })
}

// Validate returns every fault of the authorities.
func (g Goal) Validate() error {
	var errs []error
	names := map[string]bool{}
	for _, a := range g.All() {
		errs = append(errs, a.Validate())
		if names[a.Name] {
			errs = append(errs, fmt.Errorf("authority %s is there twice; each name is allowed once", a.Name))
		}
		names[a.Name] = true
	}
	return errors.Join(errs...)
}

// A Step is what a rotation waits for.
type Step string

// The steps, in their order.
const (
	// StepOpen waits for the elected replica to have a certificate signed by an authority.
	StepOpen Step = "open"
	// StepTrust waits for every proxy to trust the new authority.
	StepTrust Step = "trust"
	// StepSign waits for every workload to have a certificate of the new one.
	StepSign Step = "sign"
	// StepServe waits for every replica to serve with one.
	StepServe Step = "serve"
	// StepNarrow waits for every proxy to trust the new authority alone.
	StepNarrow Step = "narrow"
	// StepForget waits for every proxy to forget the trust domains that were left.
	StepForget Step = "forget"
	// StepDone waits for nothing.
	StepDone Step = "done"
)

// NewState is the state of a mesh that starts with an authority.
func NewState(first Authority, roots string) State {
	return State{
		Generation: 1, Signing: first.Name, Serving: first.Name, Chart: first,
		Trusted: []Trusted{{Authority: first, Roots: roots, Used: true}},
	}
}

// Find returns a trusted authority.
func (s State) Find(name string) (Trusted, bool) {
	i := slices.IndexFunc(s.Trusted, func(t Trusted) bool { return t.Name == name })
	if i < 0 {
		return Trusted{}, false
	}
	return s.Trusted[i], true
}

// Holds is the goal that the state has reached when nothing is under way.
func (s State) Holds() Goal {
	var g Goal
	for _, t := range s.Trusted {
		if t.Name == s.Signing {
			g.Sign = t.Authority
		} else {
			g.Also = append(g.Also, t.Authority)
		}
	}
	return g
}

// clone returns a state that shares nothing that Next changes.
func (s State) clone() State {
	s.Trusted, s.Fading = slices.Clone(s.Trusted), slices.Clone(s.Fading)
	if s.Rotation != nil {
		r := *s.Rotation
		r.Forced = slices.Clone(r.Forced)
		s.Rotation = &r
	}
	return s
}

// Record writes down what is known for those who cannot ask: the roots of the
// trusted authorities, and why a rotation does not go on.
func (s *State) Record(seen Seen, progress Progress) {
	for i, t := range s.Trusted {
		if roots := seen.open(t.Authority).Roots; roots != "" {
			s.Trusted[i].Roots = roots
		}
	}
	if s.Rotation != nil {
		s.Rotation.Problem = progress.Problem
	}
}

// ParseState reads a state and checks that it makes sense: whoever follows it
// must not trust less, or somebody else, because of a slip.
func ParseState(text []byte) (State, error) {
	var s State
	if err := json.Unmarshal(text, &s); err != nil {
		return State{}, fmt.Errorf("read the state of the authorities: %w", err)
	}
	for _, name := range []string{s.Signing, s.Serving} {
		if _, ok := s.Find(name); !ok {
			return State{}, fmt.Errorf("read the state of the authorities: %q is not trusted; only %s are allowed to sign", name, strings.Join(s.Names(), ", "))
		}
	}
	for _, t := range s.Trusted {
		if err := t.Validate(); err != nil {
			return State{}, fmt.Errorf("read the state of the authorities: %w", err)
		}
	}
	return s, nil
}

// JSON returns the state as ParseState reads it.
func (s State) JSON() []byte {
	text, err := json.MarshalIndent(s, "", " ")
	if err != nil {
		panic(err) // plain data
	}
	return text
}

// Names are those of the trusted authorities.
func (s State) Names() []string {
	var names []string
	for _, t := range s.Trusted {
		names = append(names, t.Name)
	}
	return names
}

// FreeName returns the name of an authority, or one like it if another that is
// trusted has that.
func (s State) FreeName(a Authority) string {
	name := a.Name
	for i := 2; ; i++ {
		if t, taken := s.Find(name); !taken || t.Same(a) {
			return name
		}
		name = fmt.Sprintf("%s-%d", a.Name, i)
	}
}

// Progress says how far the step of the rotation has come.
func (s State) Progress(seen Seen) Progress {
	if s.Rotation == nil {
		return Progress{}
	}
	_, progress := s.waits(seen)
	return progress
}

// sortTrusted keeps the output fixed.
func (s *State) sortTrusted() {
	slices.SortFunc(s.Trusted, func(a, b Trusted) int { return cmp.Compare(a.Name, b.Name) })
}
