package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"helm.sh/helm/v4/pkg/cli/values"
	"k8s.io/cli-runtime/pkg/genericclioptions"

	"github.com/outrigger-mesh/outrigger/internal/ingest"
	"github.com/outrigger-mesh/outrigger/internal/why"
)

// The statuses that the commands below end with, besides 0.
const (
	statusDenied     = 1
	statusUnanswered = 2
)

func newWhyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "why",
		Short: "Tell why a call is allowed or denied, and why a pod has a proxy or none",
		Long: `Why answers from what configures the proxies: of the cluster, or with -f of YAML
that no cluster has seen.`,
	}
	cmd.AddCommand(newWhyCallCommand(), newWhyPodCommand())
	return cmd
}

func newWhyCallCommand() *cobra.Command {
	a := asking{flags: genericclioptions.NewConfigFlags(true)}
	var headers []string
	cmd := &cobra.Command{
		Use:   "call CALLER [METHOD] URL",
		Short: "Tell whether a call is allowed, by what and where to, or what is missing",
		Long: `Call tells what becomes of a call: whether it is allowed, which object and rule
allow it, where it goes and how, or which proxy denies it, what comes near, and the
smallest change that would allow it.

CALLER is NAMESPACE/POD, or POD, deploy/NAME or sa/NAME in the namespace of -n, or a
SPIFFE ID. METHOD is GET where it is left out. URL begins with http, https (the
application's own TLS) or tcp; its host is written as the caller writes it.

The exit status is 0 when the call is allowed, 1 when it is denied, also if only by
some of the servers that it may come to, and 2 when the question cannot be answered.`,
		Example: `  outrigger why call bookbuyer/bookbuyer-7d4b9 http://bookstore.bookstore:14001/books-bought -H 'client-app: bookbuyer'
  outrigger why call deploy/bookthief -n bookthief POST http://bookstore.bookstore:14001/
  outrigger why call sa/bookwarehouse -n bookwarehouse tcp://mysql:3306 -f manifests/`,
		Args: unanswered(cobra.RangeArgs(2, 3)),
		RunE: func(cmd *cobra.Command, args []string) error {
			q := why.Question{Caller: args[0], URL: args[len(args)-1], Headers: headers}
			if len(args) == 3 {
				q.Method = strings.ToUpper(args[1])
			}
			return a.answer(cmd, strings.HasPrefix(q.Caller, "deploy"), func(w why.World, namespace string) (answer, bool, error) {
				q.Namespace = namespace
				found, err := w.Call(q)
				return found, found.Verdict == why.Allowed, err
			})
		},
	}
	cmd.Flags().StringArrayVarP(&headers, "header", "H", nil, "a header of the request, 'name: value'; may be repeated")
	a.addFlags(cmd)
	return cmd
}

func newWhyPodCommand() *cobra.Command {
	a := asking{flags: genericclioptions.NewConfigFlags(true)}
	cmd := &cobra.Command{
		Use:   "pod NAMESPACE/POD",
		Short: "Tell why a pod has a proxy, or none, and what to do about it",
		Long: `Pod tells what admission decides about a pod as it is now, and why, and whether it
has a proxy already.

The exit status is 0 when the pod has a proxy, 1 when it has none, and 2 when the
question cannot be answered.`,
		Example: `  outrigger why pod bookstore/bookstore-v1-6d8f
  outrigger why pod bookstore-v1-6d8f -n bookstore`,
		Args: unanswered(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.answer(cmd, false, func(w why.World, namespace string) (answer, bool, error) {
				name := args[0]
				if ns, pod, ok := strings.Cut(name, "/"); ok && ns != "pod" {
					namespace, name = ns, pod
				}
				found, err := w.Pod(namespace, strings.TrimPrefix(name, "pod/"))
				return found, found.Proxy, err
			})
		},
	}
	a.addFlags(cmd)
	return cmd
}

// unanswered gives a mistake on the command line the status of a question that
// cannot be answered: 1 would say that a call is denied.
func unanswered(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return &statusError{status: statusUnanswered, err: fmt.Errorf("%w; usage: %s", err, cmd.UseLine())}
		}
		return nil
	}
}

// asking is what the commands share.
type asking struct {
	flags           *genericclioptions.ConfigFlags
	files           []string
	vals            values.Options
	output          string
	systemNamespace string

	problems []ingest.Problem // of the world that was read; never nil then
}

func (a *asking) addFlags(cmd *cobra.Command) {
	a.flags.AddFlags(cmd.Flags())
	cmd.Flags().StringSliceVarP(&a.files, "filename", "f", nil, "folder or file of YAML to ask instead of the cluster, - for standard input; may be repeated")
	cmd.Flags().StringVarP(&a.output, "output", "o", "text", "text or json")
	cmd.Flags().StringVar(&a.systemNamespace, "system-namespace", "outrigger-system", "where the control plane lives")
	cmd.Flags().StringArrayVar(&a.vals.Values, "set", nil, "with -f: a value of the chart that the mesh is installed with: key=value, may be repeated")
	cmd.Flags().StringSliceVar(&a.vals.ValueFiles, "values", nil, "with -f: read values of the chart from a file")
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		return &statusError{status: statusUnanswered, err: err}
	})
}

// An answer is what a command prints, itself as JSON.
type answer interface{ Text() string }

// answer asks a question of the world that the flags name, and prints the answer.
func (a *asking) answer(cmd *cobra.Command, deployments bool, ask func(w why.World, namespace string) (answer, bool, error)) error {
	fail := func(err error) error { return &statusError{status: statusUnanswered, err: err} }
	if a.output != "text" && a.output != "json" {
		return fail(fmt.Errorf("--output is %q; text and json are allowed", a.output))
	}
	w, namespace, err := a.world(cmd, deployments)
	if err != nil {
		return fail(err)
	}
	found, good, err := ask(w, namespace)
	if err != nil {
		return fail(err)
	}
	text := found.Text()
	if a.output == "json" {
		raw, err := json.MarshalIndent(found, "", "  ")
		if err != nil {
			return fail(fmt.Errorf("write the answer: %w", err))
		}
		text = string(raw) + "\n"
	}
	if _, err := io.WriteString(cmd.OutOrStdout(), text); err != nil {
		return fail(err)
	}
	if !good {
		return &statusError{status: statusDenied}
	}
	return nil
}
