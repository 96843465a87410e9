package rotation

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
)

// settle is how long each step lasts at least: whatever a pod or a replica did
// before the step began is seen by then.
const settle = 10 * time.Second

// A Control is what people want besides the goal.
type Control struct {
	Goal   Goal   `json:"goal,omitzero"`
	By     string `json:"by,omitempty"`
	Paused bool   `json:"paused,omitempty"`
	// Forced are pods that nothing waits for: namespace/name, and @uid for that pod and
	// none that comes after it by its name.
	Forced []string `json:"forced,omitempty"`
	// Undo goes back to what was there before the rotation that is under way.
	Undo bool `json:"undo,omitempty"`
	// Chart tells that the goal is the authority of the chart's values.
	Chart bool `json:"chart,omitempty"`
}

// ByRoles returns what is wanted where roles decide, which have that goal. Of c it
// keeps what was said about the rotation that is under way.
func (c Control) ByRoles(goal Goal, s State) Control {
	roles := Control{Goal: goal, By: "MeshRootCertificates"}
	if s.Rotation != nil {
		roles.Paused, roles.Forced = c.Paused, c.Forced
	}
	return roles
}

// JSON returns the control as it is kept in the cluster.
func (c Control) JSON() []byte {
	text, err := json.MarshalIndent(c, "", " ")
	if err != nil {
		panic(err) // plain data
	}
	return text
}

// Next returns what should hold after s, as far as that is safe by what was seen,
// and how far the step that it waits for has come. It goes one step at a time, and
// from every state to every goal: whoever takes over goes on where the last one was.
func Next(s State, want Control, seen Seen, now time.Time) (State, Progress) {
	s = s.clone()
	begin(&s, want, now)
	if s.Rotation == nil {
		return s, Progress{}
	}
	if want.Chart {
		s.Chart = want.Goal.Sign
	}
	r := s.Rotation
	r.Paused, r.Forced = want.Paused, want.Forced
	if r.Goal.Recover {
		return jump(s, seen, now)
	}
	step, progress := s.waits(seen)
	if step != r.Step {
		r.Step, r.StepSince = step, now
	}
	if !progress.complete() || r.Paused || now.Sub(s.Changed) < settle && step != StepOpen {
		return s, progress
	}
	s.advance(step, seen, now)
	return s, progress
}

// Opening are the authorities that the mesh is about to trust by what is wanted, and
// that therefore have to be open. At rest there are none: what was undone is opened
// anew when it is wanted again, because it may be another one behind the same words.
func Opening(s State, want Control) []Authority {
	s = s.clone()
	begin(&s, want, time.Time{})
	if s.Rotation == nil {
		return nil
	}
	return slices.DeleteFunc(s.Rotation.Goal.All(), func(a Authority) bool {
		_, trusted := s.Find(a.Name)
		return trusted
	})
}

// begin starts a rotation, or turns the one that is under way to another goal.
func begin(s *State, want Control, now time.Time) {
	goal := want.Goal
	if r := s.Rotation; r != nil {
		if want.Undo {
			goal = r.Previous
		}
		if goal.Sign.Name == "" {
			return // whoever took the wish away did not say what else
		}
		if !goal.Same(r.Goal) || goal.Recover != r.Goal.Recover {
			r.Goal, r.Undone, r.By = goal, goal.Same(r.Previous), want.By
		}
		return
	}
	if want.Undo || goal.Sign.Name == "" || goal.Same(s.Holds()) && s.Serving == s.Signing {
		return
	}
	s.Rotation = &Rotation{
		From: s.Signing, Goal: goal, By: want.By, Started: now, Previous: s.Holds(), Step: StepOpen, StepSince: now,
	}
}

// waits returns the step that the rotation is in, and how far it has come.
func (s State) waits(seen Seen) (Step, Progress) {
	goal := s.Rotation.Goal
	for _, a := range goal.All() {
		trusted, ok := s.Find(a.Name)
		if ok && !trusted.Same(a) {
			return StepOpen, Progress{Problem: fmt.Sprintf("an authority of the name %s is trusted already, and is another: %s; give the new one another name", a.Name, trusted.Authority)}
		}
		if !ok {
			return StepOpen, s.opening(a, seen)
		}
	}
	if s.Signing != goal.Sign.Name {
		return s.count(StepTrust, seen, "trust the new authority", s.trusts)
	}
	if s.Serving != s.Signing {
		return s.count(StepSign, seen, "have a certificate of the new authority", s.signed(seen, s.Signing))
	}
	if extra := s.extra(); len(extra) > 0 {
		return s.count(StepServe, seen, "have no certificate of the authority that leaves", s.left(seen, extra))
	}
	if len(s.Fading) > 0 {
		return s.count(StepNarrow, seen, "trust the new authority alone", s.follows)
	}
	if s.Rotation.Step == StepForget {
		return s.count(StepForget, seen, "have forgotten the old trust domain", s.follows)
	}
	return s.count(StepNarrow, seen, "trust what is to be trusted, and nothing else", s.follows)
}

func (s State) opening(a Authority, seen Seen) Progress {
	p := Progress{What: "authority is open"}
	if known := seen.open(a); known.Roots == "" {
		p.Problem = "authority " + a.Name + " is not open yet"
		if known.Failed != "" {
			p.Problem = fmt.Sprintf("authority %s cannot be opened: %s", a.Name, known.Failed)
		}
	}
	return p
}

// extra are the trusted authorities that the goal does not want.
func (s State) extra() []string {
	var names []string
	for _, t := range s.Trusted {
		if !s.Rotation.Goal.wants(t.Name) {
			names = append(names, t.Name)
		}
	}
	return names
}

// A judge says why a pod is behind, or nothing.
type judge func(Pod) string

// trusts judges whether a proxy trusts the authority that is to sign.
func (s State) trusts(p Pod) string {
	trusted, _ := s.Find(s.Rotation.Goal.Sign.Name)
	if p.Trusts >= trusted.Since {
		return ""
	}
	return away(p, "its proxy has not acknowledged the new trust")
}

// follows judges whether a proxy trusts what is trusted now.
func (s State) follows(p Pod) string {
	if p.Trusts >= s.Generation {
		return ""
	}
	return away(p, "its proxy has not acknowledged that the old trust ended")
}

// signed judges whether a pod's certificate is of one of the authorities.
func (s State) signed(seen Seen, names ...string) judge {
	return func(p Pod) string {
		if seen.signedBy(p.Leaf, s, names...) {
			return ""
		}
		if p.Leaf == nil {
			return away(p, "nobody knows its certificate")
		}
		return away(p, "its certificate is not new yet")
	}
}

// left judges whether a pod would be cut if the extra authorities were trusted no
// more. One of which nobody knows the certificate has none of an authority that never
// signed anything; somebody else may have given it one that leads there all the same.
func (s State) left(seen Seen, extra []string) judge {
	used := slices.ContainsFunc(extra, func(name string) bool {
		t, _ := s.Find(name)
		return t.Used
	})
	var stay []string
	for _, a := range s.Rotation.Goal.All() {
		stay = append(stay, a.Name)
	}
	signed := s.signed(seen, stay...)
	return func(p Pod) string {
		if p.Leaf == nil && !used {
			return ""
		}
		return signed(p)
	}
}

func away(p Pod, why string) string {
	if !p.Connected {
		return "it is not connected to outriggerd"
	}
	return why
}

// count counts all pods but the forced ones, and the replicas that follow the state.
// That these serve with a certificate of the new authority is asked for in StepServe
// alone: until then one that was restarted has none if the old authority is dead.
func (s State) count(step Step, seen Seen, what string, why judge) (Step, Progress) {
	p := Progress{What: what}
	for _, replica := range seen.Replicas {
		p.Of++
		switch {
		case !replica.Heard:
			p.behind("outriggerd "+replica.Name, "it has not reported of late")
		case replica.Generation < s.Generation:
			p.behind("outriggerd "+replica.Name, fmt.Sprintf("it follows generation %d, not %d yet", replica.Generation, s.Generation))
		case step == StepServe && replica.Serving != s.Serving:
			p.behind("outriggerd "+replica.Name, "its own certificate is not new yet")
		default:
			p.Replicas++
		}
	}
	s.unstarted(seen, &p)
	for _, pod := range seen.Pods {
		p.Total++
		behind := why(pod)
		if behind == "" || s.Rotation.forced(pod.Name, pod.UID) {
			p.Done++
			continue
		}
		p.behind(pod.Name, behind)
	}
	return step, p
}

// forced reports whether nothing waits for a pod.
func (r Rotation) forced(name, uid string) bool {
	return slices.ContainsFunc(r.Forced, func(entry string) bool {
		forced, of, alone := strings.Cut(entry, "@")
		return forced == name && (!alone || of == uid)
	})
}

// advance does what the step has waited for.
func (s *State) advance(step Step, seen Seen, now time.Time) {
	goal := s.Rotation.Goal
	switch step {
	case StepOpen:
		for _, a := range goal.All() {
			if _, ok := s.Find(a.Name); !ok && seen.open(a).Roots != "" {
				s.Trusted = append(s.Trusted, Trusted{Authority: a, Roots: seen.open(a).Roots, Since: s.Generation + 1})
				s.Fading = slices.DeleteFunc(s.Fading, func(d string) bool { return d == a.TrustDomain })
			}
		}
		s.sortTrusted()
	case StepTrust:
		s.Signing = goal.Sign.Name
		s.use(s.Signing)
	case StepSign:
		s.Serving = s.Signing
		for i := range s.Trusted { // nobody has a certificate of another one now
			s.Trusted[i].Used = s.Trusted[i].Name == s.Signing
		}
	case StepServe:
		s.leave()
	case StepNarrow, StepForget:
		if len(s.Fading) == 0 {
			s.finish(now)
			return
		}
		s.Fading = nil
		s.Rotation.Step = StepForget
	case StepDone:
		return
	}
	s.Generation++
	s.Changed = now
	s.Rotation.Step, _ = s.waits(seen)
	s.Rotation.StepSince = now
}

// leave trusts the extra authorities no more. The names of a trust domain that
// nobody vouches for then are known for one step longer.
func (s *State) leave() {
	var domains []string
	s.Trusted = slices.DeleteFunc(s.Trusted, func(t Trusted) bool {
		extra := !s.Rotation.Goal.wants(t.Name)
		if extra {
			domains = append(domains, t.TrustDomain)
		}
		return extra
	})
	for _, t := range s.Trusted {
		domains = slices.DeleteFunc(domains, func(d string) bool { return d == t.TrustDomain })
	}
	slices.Sort(domains)
	s.Fading = slices.Compact(domains)
}

func (s *State) use(name string) {
	for i := range s.Trusted {
		if s.Trusted[i].Name == name {
			s.Trusted[i].Used = true
		}
	}
}

// finish ends the rotation: everybody trusts what is trusted.
func (s *State) finish(now time.Time) {
	for i := range s.Trusted {
		s.Trusted[i].Since = 0
	}
	s.Rotation.Step, s.Rotation.StepSince, s.Rotation.Ended = StepDone, now, now
	s.Last, s.Rotation = s.Rotation, nil
}

// jump goes to the goal at once.
func jump(s State, seen Seen, now time.Time) (State, Progress) {
	goal := s.Rotation.Goal
	if p := s.opening(goal.Sign, seen); p.Problem != "" {
		return s, p
	}
	s.Trusted = []Trusted{{Authority: goal.Sign, Roots: seen.open(goal.Sign).Roots, Used: true}}
	s.Signing, s.Serving, s.Fading = goal.Sign.Name, goal.Sign.Name, nil
	s.Generation++
	s.Changed = now
	s.finish(now)
	return s, Progress{What: "go on with the new root"}
}
