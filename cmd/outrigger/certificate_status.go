package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/outrigger-mesh/outrigger/internal/controller"
	"github.com/outrigger-mesh/outrigger/internal/rotation"
)

// look is how often a command that watches looks.
const look = 2 * time.Second

// endsSoon is when the end of a root, or of an intermediate of the user's, becomes a
// fault. The mesh renews its own intermediates twice as early.
const endsSoon = 30 * 24 * time.Hour

// A certificateStatus is what status tells.
type certificateStatus struct {
	Signing     string             `json:"signing"`
	Serving     string             `json:"serving"`
	Generation  int64              `json:"generation"`
	Authorities []authorityStatus  `json:"authorities"`
	Ends        rotation.Ends      `json:"ends"`
	Proxies     int                `json:"proxies"`
	Connected   int                `json:"connected"`
	Rotation    *rotation.Rotation `json:"rotation,omitempty"`
	Progress    *rotation.Progress `json:"progress,omitempty"`
	Last        *rotation.Rotation `json:"last,omitempty"`
	Faults      []string           `json:"faults"`
}

// An authorityStatus is one that is trusted.
type authorityStatus struct {
	rotation.Authority
	Roots []rootStatus `json:"roots"`
}

type rootStatus struct {
	Subject string    `json:"subject"`
	SHA256  string    `json:"sha256"`
	End     time.Time `json:"end"`
}

// rootsOf reads recorded roots; what is damaged is left out.
func rootsOf(text string) []rootStatus {
	var out []rootStatus
	for rest := []byte(text); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return out
		}
		if c, err := x509.ParseCertificate(block.Bytes); err == nil {
			sum := sha256.Sum256(c.Raw)
			out = append(out, rootStatus{Subject: c.Subject.String(), SHA256: hex.EncodeToString(sum[:]), End: c.NotAfter})
		}
	}
}

func newStatusCommand() *cobra.Command {
	var a authorities
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Who signs, when certificates end, and how far a rotation has come",
		Long: `Status shows the authorities that the mesh trusts and which one signs, when roots,
intermediates and certificates end, and for whom a rotation waits.

The exit status is 0 when the mesh is at rest and nothing ends soon, 1 when something
needs people, and 2 when the question cannot be answered.`,
		Args: unanswered(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			status, err := a.status(cmd.Context(), time.Now())
			if err != nil {
				return &statusError{status: 2, err: err}
			}
			if err := status.print(cmd.OutOrStdout(), a.output, time.Now()); err != nil {
				return &statusError{status: 2, err: err}
			}
			if len(status.Faults) > 0 {
				return &statusError{status: 1}
			}
			return nil
		},
	}
	a.addFlags(cmd)
	return cmd
}

// status looks at the mesh.
func (a *authorities) status(ctx context.Context, now time.Time) (certificateStatus, error) {
	if a.client == nil {
		if err := a.connect(ctx); err != nil {
			return certificateStatus{}, err
		}
	}
	found, err := a.read(ctx)
	if err != nil {
		return certificateStatus{}, err
	}
	seen, reports, err := controller.MeshSeen(ctx, a.client, a.lookup, now)
	if err != nil {
		return certificateStatus{}, err
	}
	return newStatus(found, seen, reports, now), nil
}

// newStatus makes a status of what was read.
func newStatus(found controller.Authorities, seen rotation.Seen, reports []rotation.Report, now time.Time) certificateStatus {
	s := found.State
	status := certificateStatus{
		Signing: s.Signing, Serving: s.Serving, Generation: s.Generation, Rotation: s.Rotation, Last: s.Last,
		Proxies: len(seen.Pods), Ends: rotation.SoonestEnds(reports, seen, now), Faults: []string{},
	}
	for _, p := range seen.Pods {
		if p.Connected {
			status.Connected++
		}
	}
	seen.Open = map[string]rotation.Open{}
	for _, t := range s.Trusted {
		roots := rootsOf(t.Roots)
		status.Authorities = append(status.Authorities, authorityStatus{Authority: t.Authority, Roots: roots})
		known := rotation.Open{Authority: t.Authority, Roots: t.Roots}
		for _, root := range roots {
			known.Prints = append(known.Prints, root.SHA256)
			if left := root.End.Sub(now); left < endsSoon {
				status.Faults = append(status.Faults, fmt.Sprintf("a root of authority %s ends %s", t.Name, when(root.End, now)))
			}
		}
		seen.Open[t.Name] = known
	}
	if end := rotation.UsersIntermediate(s, status.Ends); !end.IsZero() && end.Sub(now) < endsSoon {
		status.Faults = append(status.Faults, fmt.Sprintf("an intermediate of authority %s ends %s; put a newer one into its Secret", s.Serving, when(end, now)))
	}
	if s.Rotation != nil {
		progress := s.Progress(seen)
		status.Progress = &progress
		if s.Rotation.Problem != "" {
			status.Faults = append(status.Faults, s.Rotation.Problem)
		}
		if s.Rotation.Paused {
			status.Faults = append(status.Faults, "the rotation is paused")
		}
		for _, behind := range progress.Behind {
			status.Faults = append(status.Faults, behind.Who+": "+behind.Why)
		}
	}
	if found.Chart.Name != "" && !found.Chart.Same(s.Chart) {
		status.Faults = append(status.Faults, fmt.Sprintf("the chart's values name %s, which the mesh does not follow by itself; run: outrigger certificate rotate --chart", found.Chart))
	}
	return status
}

// when says a moment and how far it is.
func when(end, now time.Time) string {
	if end.IsZero() {
		return "unknown"
	}
	left, word := end.Sub(now), "in "
	if left < 0 {
		return fmt.Sprintf("%s (%s ago)", end.UTC().Format(time.RFC3339), long(-left))
	}
	return fmt.Sprintf("%s (%s%s)", end.UTC().Format(time.RFC3339), word, long(left))
}

// long says a duration in days, hours or minutes.
func long(d time.Duration) string {
	switch {
	case d >= 48*time.Hour:
		return fmt.Sprintf("%d days", d/(24*time.Hour))
	case d >= 2*time.Hour:
		return fmt.Sprintf("%d hours", d/time.Hour)
	default:
		return fmt.Sprintf("%d minutes", d/time.Minute)
	}
}

func (s certificateStatus) print(out io.Writer, form string, now time.Time) error {
	if form == "json" {
		encoder := json.NewEncoder(out)
		encoder.SetIndent("", "  ")
		return encoder.Encode(s)
	}
	_, err := io.WriteString(out, s.text(now))
	return err
}

func (s certificateStatus) text(now time.Time) string {
	var b strings.Builder
	for _, a := range s.Authorities {
		var does []string
		if a.Name == s.Signing {
			does = append(does, "signs")
		}
		if a.Name == s.Serving && s.Serving != s.Signing {
			does = append(does, "serves")
		}
		fmt.Fprintf(&b, "%s: %s\n", cmp.Or(strings.Join(does, ", "), "trusted"), a.Authority)
		for _, root := range a.Roots {
			fmt.Fprintf(&b, "  root %s, sha256 %.16s…, ends %s\n", root.Subject, root.SHA256, when(root.End, now))
		}
	}
	fmt.Fprintf(&b, "soonest ends: intermediate %s, outriggerd %s, workload %s\n", when(s.Ends.Intermediate, now), when(s.Ends.Serving, now), when(s.Ends.Workload, now))
	fmt.Fprintf(&b, "proxies: %d, connected %d\n", s.Proxies, s.Connected)
	if s.Rotation != nil {
		fmt.Fprintf(&b, "rotation: from %s to %s, by %s, since %s\n", s.Rotation.From, s.Rotation.Goal.Sign, s.Rotation.By, s.Rotation.Started.UTC().Format(time.RFC3339))
		fmt.Fprintf(&b, "  %s\n", s.line())
	}
	for _, fault := range s.Faults {
		fmt.Fprintf(&b, "! %s\n", fault)
	}
	return b.String()
}

// line is how far the step has come.
func (s certificateStatus) line() string {
	if s.Rotation == nil {
		return fmt.Sprintf("done    %s signs, and %d proxies trust it alone", s.Signing, s.Proxies)
	}
	line := fmt.Sprintf("%-7s", s.Rotation.Step)
	if s.Rotation.Paused {
		line += " (paused)"
	}
	switch p := s.Progress; {
	case s.Rotation.Problem != "":
		line += " " + s.Rotation.Problem
	case p != nil:
		line += fmt.Sprintf(" %d/%d proxies %s; %d/%d outriggerd", p.Done, p.Total, p.What, p.Replicas, p.Of)
		if len(p.Behind) > 0 {
			line += fmt.Sprintf("; behind: %s (%s)", p.Behind[0].Who, p.Behind[0].Why)
			if left := len(p.Behind) - 1; left > 0 {
				line += fmt.Sprintf(" and %d more", left)
			}
		}
	}
	return line
}

// watch prints how far the rotation has come, each time that this is news, until the
// mesh is at rest. from is the state before something was wanted.
func (a *authorities) watch(cmd *cobra.Command, from rotation.State) error {
	ctx := cmd.Context()
	end := make(<-chan time.Time)
	if a.timeout > 0 {
		timer := time.NewTimer(a.timeout)
		defer timer.Stop()
		end = timer.C
	}
	tick := time.NewTicker(look)
	defer tick.Stop()
	told := ""
	for {
		status, err := a.status(ctx, time.Now())
		if err != nil {
			return err
		}
		begun := from.Rotation != nil || status.Rotation != nil || changedLast(from.Last, status.Last)
		if line := status.line(); begun && line != told {
			told = line
			if a.output == "json" {
				err = status.print(cmd.OutOrStdout(), "json", time.Now())
			} else {
				_, err = fmt.Fprintln(cmd.OutOrStdout(), line)
			}
			if err != nil {
				return err
			}
		}
		if begun && status.Rotation == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return &statusError{status: 2, err: fmt.Errorf("watching ended; the rotation goes on (outrigger certificate status, pause, undo)")}
		case <-end:
			return &statusError{status: 2, err: fmt.Errorf("not done after %s; the rotation goes on (outrigger certificate status, pause, undo)", a.timeout)}
		case <-tick.C:
		}
	}
}

func changedLast(before, after *rotation.Rotation) bool {
	return after != nil && (before == nil || !before.Ended.Equal(after.Ended))
}
