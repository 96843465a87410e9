package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericclioptions"

	"github.com/outrigger-mesh/outrigger/internal/ingest"
	"github.com/outrigger-mesh/outrigger/internal/why"
)

func newCheckCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Tell what the mesh cannot honour",
	}
	cmd.AddCommand(newCheckPolicyCommand())
	return cmd
}

func newCheckPolicyCommand() *cobra.Command {
	a := asking{flags: genericclioptions.NewConfigFlags(true)}
	cmd := &cobra.Command{
		Use:   "policy",
		Short: "List everything that somebody wrote and the mesh cannot honour",
		Long: `Policy lists what cannot be honoured as it is written, object by object, with the
reason and what holds instead: of the cluster, as outriggerd finds it, or with -f of
YAML that no cluster has seen; with -n of one namespace only.

The exit status is 0 when everything is honoured, 1 when something is not, and 2 when
the question cannot be answered.`,
		Example: `  outrigger check policy
  outrigger check policy -f manifests/ --output json`,
		Args: unanswered(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.answer(cmd, false, func(_ why.World, _ string) (answer, bool, error) {
				problems := within(a.problems, *a.flags.Namespace)
				return policyReport{Problems: problems}, len(problems) == 0, nil
			})
		},
	}
	a.addFlags(cmd)
	return cmd
}

// within returns the Problems of a namespace and of what is in it; of all, where it is
// empty.
func within(in []ingest.Problem, namespace string) []ingest.Problem {
	out := []ingest.Problem{}
	for _, p := range in {
		if namespace == "" || p.Object.Namespace == namespace || p.Object.Kind == "Namespace" && p.Object.Name == namespace {
			out = append(out, p)
		}
	}
	return out
}

// A policyReport is every Problem, in the order of package ingest.
type policyReport struct {
	Problems []ingest.Problem `json:"problems"`
}

// Text has a line for each Problem.
func (r policyReport) Text() string {
	if len(r.Problems) == 0 {
		return "Everything is honoured as it is written.\n"
	}
	var b strings.Builder
	for _, p := range r.Problems {
		fmt.Fprintf(&b, "%s  %s: %s\n", p.Object, p.Reason, p.Message)
	}
	return b.String()
}
