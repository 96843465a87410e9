package main

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"gomodules.xyz/jsonpatch/v2"
	"helm.sh/helm/v4/pkg/chart/common/util"
	"helm.sh/helm/v4/pkg/cli/values"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"sigs.k8s.io/yaml"

	"github.com/outrigger-mesh/outrigger/injector"
	"github.com/outrigger-mesh/outrigger/internal/annotation"
	"github.com/outrigger-mesh/outrigger/internal/mesh"
)

func newInjectCommand() *cobra.Command {
	var files []string
	var vals values.Options
	var systemNamespace, namespace string
	var explain bool
	cmd := &cobra.Command{
		Use:   "inject -f -|FILE...",
		Short: "Put sidecars into YAML, or tell what the mesh would decide",
		Long: `Inject reads YAML and writes it with sidecars in Deployments, StatefulSets,
DaemonSets, ReplicaSets, Jobs, CronJobs and Pods, in Lists too, by the same rules
as the webhook. Everything else is written as it was.

A namespace that is in the input says what its labels say. Of others nothing is
known, so inject takes them as labelled outrigger.dev/inject=enabled.

What the sidecar gets comes from the chart's values: give the same --set and
--values as to install.`,
		Example: `  outrigger inject -f shop.yaml | kubectl apply -f -
  outrigger inject --explain -f shop.yaml`,
		RunE: func(cmd *cobra.Command, args []string) error {
			text, err := readInput(append(files, args...), cmd.InOrStdin())
			if err != nil {
				return err
			}
			settings, err := injectSettings(vals, systemNamespace)
			if err != nil {
				return err
			}
			docs, err := parseDocuments(text)
			if err != nil {
				return err
			}
			in := injection{settings: settings, namespaces: namespacesIn(docs), namespace: namespace, warn: cmd.ErrOrStderr()}
			if explain {
				return in.explain(docs, cmd.OutOrStdout())
			}
			if err := eachWorkload(docs, in.inject); err != nil {
				return err
			}
			return writeDocuments(cmd.OutOrStdout(), docs)
		},
	}
	cmd.Flags().StringSliceVarP(&files, "filename", "f", nil, "file to read, - for standard input; may be repeated")
	cmd.Flags().BoolVar(&explain, "explain", false, "print each workload's verdict and its reason instead")
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "default", "namespace of objects that name none")
	cmd.Flags().StringVar(&systemNamespace, "system-namespace", "outrigger-system", "where the control plane lives")
	cmd.Flags().StringArrayVar(&vals.Values, "set", nil, "set a value of the chart: key=value, may be repeated")
	cmd.Flags().StringSliceVar(&vals.ValueFiles, "values", nil, "read values of the chart from a file")
	return cmd
}

func newUninjectCommand() *cobra.Command {
	var files []string
	cmd := &cobra.Command{
		Use:     "uninject -f -|FILE...",
		Short:   "Take sidecars out of YAML again",
		Long:    "Uninject undoes inject: it takes the sidecar out and gives the containers their own\nprobes and hooks back.",
		Example: "  kubectl get deploy web -o yaml | outrigger uninject -f - | kubectl apply -f -",
		RunE: func(cmd *cobra.Command, args []string) error {
			text, err := readInput(append(files, args...), cmd.InOrStdin())
			if err != nil {
				return err
			}
			docs, err := parseDocuments(text)
			if err != nil {
				return err
			}
			err = eachWorkload(docs, func(w workload) ([]jsonpatch.Operation, error) { return injector.Remove(w.pod), nil })
			if err != nil {
				return err
			}
			return writeDocuments(cmd.OutOrStdout(), docs)
		},
	}
	cmd.Flags().StringSliceVarP(&files, "filename", "f", nil, "file to read, - for standard input; may be repeated")
	return cmd
}

// An injection is one run of the inject command.
type injection struct {
	settings   injector.Settings
	namespaces map[string]injector.Namespace
	namespace  string // of objects that name none
	warn       io.Writer
}

func (in injection) request(w workload) injector.Request {
	name := w.namespace
	if name == "" {
		name = in.namespace
	}
	if ns, ok := in.namespaces[name]; ok {
		return injector.Request{Namespace: ns, Match: injector.MatchNamespace(ns, in.settings), Pod: w.pod}
	}
	return injector.Request{Namespace: injector.Namespace{Name: name}, Match: injector.MatchOn, Pod: w.pod}
}

func (in injection) inject(w workload) ([]jsonpatch.Operation, error) {
	verdict, ops := injector.Inject(in.request(w), in.settings)
	if verdict.Outcome == injector.Denied {
		return nil, fmt.Errorf("%s: %s", w, verdict.Message)
	}
	if verdict.Surprising {
		fmt.Fprintf(in.warn, "warning: %s: %s\n", w, verdict.Message)
	}
	return ops, nil
}

func (in injection) explain(docs []*document, out io.Writer) error {
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "WORKLOAD\tVERDICT\tREASON\tWHY")
	err := eachWorkload(docs, func(w workload) ([]jsonpatch.Operation, error) {
		verdict, _ := injector.Inject(in.request(w), in.settings)
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", w, verdict.Outcome, verdict.Reason, strings.ReplaceAll(verdict.Message, "\n", "; "))
		return nil, nil
	})
	return errors.Join(err, table.Flush())
}

// readInput joins the files; none is a mistake, not standard input, which would
// look like a hanging command.
func readInput(files []string, stdin io.Reader) ([]byte, error) {
	if len(files) == 0 {
		return nil, errors.New("name files to read with -f; - is standard input")
	}
	var all []byte
	for _, name := range files {
		var text []byte
		var err error
		if name == "-" {
			text, err = io.ReadAll(stdin)
		} else {
			text, err = os.ReadFile(name)
		}
		if err != nil {
			return nil, fmt.Errorf("read input: %w", err)
		}
		if len(all) > 0 {
			all = append(all, "\n---\n"...)
		}
		all = append(all, text...)
	}
	return all, nil
}

// readValues returns the chart's values with those that were given.
func readValues(opts values.Options) (chartValues, error) {
	given, err := mergeValues(opts)
	if err != nil {
		return chartValues{}, fmt.Errorf("read the chart's values: %w", err)
	}
	chart, err := loadChart()
	if err != nil {
		return chartValues{}, err
	}
	all, err := util.CoalesceValues(chart, given)
	if err != nil {
		return chartValues{}, fmt.Errorf("read the chart's values: %w", err)
	}
	text, err := yaml.Marshal(all)
	if err != nil {
		return chartValues{}, fmt.Errorf("read the chart's values: %w", err)
	}
	var v chartValues
	if err := yaml.Unmarshal(text, &v); err != nil {
		return chartValues{}, fmt.Errorf("read the chart's values: %w", err)
	}
	return v, nil
}

// injectSettings makes of the chart's values what outriggerd is started with.
func injectSettings(opts values.Options, systemNamespace string) (injector.Settings, error) {
	v, err := readValues(opts)
	if err != nil {
		return injector.Settings{}, err
	}
	settings, err := v.settings(systemNamespace)
	if err == nil {
		err = settings.Validate()
	}
	if err != nil {
		return injector.Settings{}, fmt.Errorf("read the chart's values: %w", err)
	}
	return settings, nil
}

// chartValues are those of the chart's values that pods get to feel.
type chartValues struct {
	MeshName, TrustDomain, ClusterDomain, OSMMeshName string
	TrafficPolicy, Egress                             string
	ServiceCIDRs                                      []netip.Prefix
	Image                                             struct{ Prefix, Tag, PullPolicy string }
	Proxy                                             struct {
		CPU, Memory, CPULimit, MemoryLimit, LogLevel string
		Concurrency                                  int
		LegacyIptables                               bool
	}
	Exclusions struct {
		InboundPorts, OutboundPorts         []uint16
		OutboundCIDRs, IncludeOutboundCIDRs []netip.Prefix
	}
}

func (v chartValues) settings(systemNamespace string) (injector.Settings, error) {
	var errs []error
	quantity := func(name, text string) resource.Quantity {
		if text == "" {
			return resource.Quantity{}
		}
		q, err := resource.ParseQuantity(text)
		if err != nil {
			errs = append(errs, fmt.Errorf("proxy.%s: %q is not a quantity such as 100m or 64Mi", name, text))
		}
		return q
	}
	outriggerd := mesh.Identity{Namespace: systemNamespace, ServiceAccount: "outriggerd"}
	s := injector.Settings{
		Mesh: v.MeshName, TrustDomain: v.TrustDomain,
		ControlPlane:    fmt.Sprintf("outriggerd.%s.svc.%s:15128", systemNamespace, v.ClusterDomain),
		ControlPlaneID:  outriggerd.URI(v.TrustDomain),
		SystemNamespace: systemNamespace, OSMMesh: v.OSMMeshName,
		InitImage: v.Image.Prefix + "/outrigger-init:" + v.Image.Tag, ProxyImage: v.Image.Prefix + "/outrigger-proxy:" + v.Image.Tag,
		PullPolicy: corev1.PullPolicy(v.Image.PullPolicy), LogLevel: v.Proxy.LogLevel, Concurrency: v.Proxy.Concurrency,
		LegacyIptables: v.Proxy.LegacyIptables,
		Resources: injector.Resources{
			CPU: quantity("cpu", v.Proxy.CPU), Memory: quantity("memory", v.Proxy.Memory),
			CPULimit: quantity("cpuLimit", v.Proxy.CPULimit), MemoryLimit: quantity("memoryLimit", v.Proxy.MemoryLimit),
		},
		Redirect: v.redirect(),
	}
	return s, errors.Join(errs...)
}

func (v chartValues) redirect() annotation.Redirect {
	return annotation.Redirect{
		ExcludeInboundPorts: v.Exclusions.InboundPorts, ExcludeOutboundPorts: v.Exclusions.OutboundPorts,
		ExcludeOutboundCIDRs: v.Exclusions.OutboundCIDRs, IncludeOutboundCIDRs: v.Exclusions.IncludeOutboundCIDRs,
	}
}
