package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	appsv1 "k8s.io/api/apps/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/discovery"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/outrigger-mesh/outrigger/injector"
	"github.com/outrigger-mesh/outrigger/internal/annotation"
	"github.com/outrigger-mesh/outrigger/internal/api"
	"github.com/outrigger-mesh/outrigger/internal/controller"
	"github.com/outrigger-mesh/outrigger/internal/ingest"
	"github.com/outrigger-mesh/outrigger/internal/manifest"
	"github.com/outrigger-mesh/outrigger/internal/mesh"
	"github.com/outrigger-mesh/outrigger/internal/rotation"
	"github.com/outrigger-mesh/outrigger/internal/why"
)

// usualServiceCIDR is where a cluster has its ClusterIPs unless it was told
// otherwise. It is for YAML, which does not say.
var usualServiceCIDR = netip.MustParsePrefix("10.96.0.0/12") //nolint:gochecknoglobals // a constant, if Go had them of this type

// world reads what questions are asked of, and the namespace of names without one.
func (a *asking) world(cmd *cobra.Command, deployments bool) (why.World, string, error) {
	if len(a.files) > 0 {
		return a.ofFiles(cmd.InOrStdin())
	}
	namespace, _, err := a.flags.ToRawKubeConfigLoader().Namespace()
	if err != nil {
		return why.World{}, "", fmt.Errorf("find the namespace: %w", err)
	}
	w, err := a.ofCluster(cmd.Context())
	if err != nil || !deployments {
		return w.World, namespace, err
	}
	var list appsv1.DeploymentList
	if err := w.List(cmd.Context(), &list, client.InNamespace(namespace)); err != nil {
		return why.World{}, "", fmt.Errorf("list the Deployments of namespace %s: %w", namespace, err)
	}
	for i := range list.Items {
		w.Deployments = append(w.Deployments, &list.Items[i])
	}
	return w.World, namespace, nil
}

// ofFiles makes the world that YAML describes.
func (a *asking) ofFiles(stdin io.Reader) (why.World, string, error) {
	namespace := cmp.Or(*a.flags.Namespace, "default")
	chart, err := readValues(a.vals)
	if err != nil {
		return why.World{}, "", err
	}
	settings := injector.Settings{SystemNamespace: a.systemNamespace, OSMMesh: chart.OSMMeshName, Redirect: chart.redirect()}
	opts, err := chart.ingest(a.systemNamespace)
	if err != nil {
		return why.World{}, "", err
	}
	found, err := parseFiles(a.files, stdin, namespace)
	if err != nil {
		return why.World{}, "", err
	}
	objs, err := manifest.Complete(found, settings, opts.ServiceCIDRs)
	if err != nil {
		return why.World{}, "", err
	}
	return a.newWorld(objs, found.Deployments, settings, opts), namespace, nil
}

// newWorld builds what outriggerd builds, and keeps what it cannot honour.
func (a *asking) newWorld(objs ingest.Objects, deployments []*appsv1.Deployment, settings injector.Settings, opts ingest.Options) why.World {
	snap, problems := ingest.Build(objs, opts)
	a.problems = append([]ingest.Problem{}, problems...)
	return why.World{
		Snapshot: snap, Injector: settings,
		Namespaces: objs.Namespaces, Pods: objs.Pods, Services: objs.Services, Deployments: deployments,
	}
}

// ingest returns what outriggerd makes of the same values.
func (v chartValues) ingest(systemNamespace string) (ingest.Options, error) {
	if v.TrafficPolicy != "permissive" && v.TrafficPolicy != "enforced" {
		return ingest.Options{}, fmt.Errorf("trafficPolicy is %q; permissive and enforced are allowed", v.TrafficPolicy)
	}
	if v.Egress != "allow" && v.Egress != "deny" {
		return ingest.Options{}, fmt.Errorf("egress is %q; allow and deny are allowed", v.Egress)
	}
	if v.TrustDomain == "" {
		return ingest.Options{}, errors.New("trustDomain is empty")
	}
	opts := ingest.Options{
		AllowEgress: v.Egress == "allow", TrustDomain: v.TrustDomain, ClusterDomain: v.ClusterDomain,
		ServiceCIDRs: v.ServiceCIDRs, OSMMeshName: v.OSMMeshName, SystemNamespace: systemNamespace,
	}
	if v.TrafficPolicy == "permissive" {
		opts.Mode = mesh.Permissive
	}
	if len(opts.ServiceCIDRs) == 0 {
		opts.ServiceCIDRs = []netip.Prefix{usualServiceCIDR}
	}
	return opts, nil
}

// parseFiles reads files, and what YAML and JSON there is in folders and below.
func parseFiles(names []string, stdin io.Reader, namespace string) (manifest.Objects, error) {
	var all manifest.Objects
	read := func(name string) error {
		text, err := readInput([]string{name}, stdin)
		if err != nil {
			return err
		}
		found, err := manifest.Parse(text, namespace)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		all = manifest.Join(all, found)
		return nil
	}
	for _, name := range names {
		info, err := os.Stat(name)
		if name == "-" || err == nil && !info.IsDir() {
			err = read(name)
		} else if err == nil {
			err = filepath.WalkDir(name, func(path string, d fs.DirEntry, err error) error {
				if err != nil || d.IsDir() || !slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(path)) {
					return err
				}
				return read(path)
			})
		}
		if err != nil {
			return manifest.Objects{}, fmt.Errorf("read the objects: %w", err)
		}
	}
	return all, nil
}

// liveWorld is a cluster's, with the means to ask it more.
type liveWorld struct {
	why.World
	client.Reader
}

// ofCluster reads what outriggerd reads, and what it was told.
func (a *asking) ofCluster(ctx context.Context) (liveWorld, error) {
	in := installation{flags: a.flags}
	c, _, err := in.connect()
	if err != nil {
		return liveWorld{}, err
	}
	told, err := a.told(ctx, c)
	if err != nil {
		return liveWorld{}, err
	}
	chart, err := told.values()
	if err != nil {
		return liveWorld{}, err
	}
	if len(chart.ServiceCIDRs) == 0 {
		if chart.ServiceCIDRs, err = serviceCIDRs(ctx, c); err != nil {
			return liveWorld{}, err
		}
	}
	opts, err := chart.ingest(a.systemNamespace)
	if err != nil {
		return liveWorld{}, fmt.Errorf("read the arguments of outriggerd: %w", err)
	}
	now, err := controller.ReadAuthorities(ctx, c, a.systemNamespace)
	switch {
	case err == nil:
		acceptTrustDomains(&opts, now.State)
	case !apierrors.IsNotFound(err) && !apierrors.IsForbidden(err): // then the chart's trust domain is what we know
		return liveWorld{}, err
	}
	policy, err := a.policyReader(in)
	if err != nil {
		return liveWorld{}, err
	}
	objs, err := controller.Objects(ctx, policy)
	if err != nil {
		return liveWorld{}, err
	}
	settings := injector.Settings{SystemNamespace: a.systemNamespace, OSMMesh: chart.OSMMeshName, Redirect: chart.redirect()}
	return liveWorld{World: a.newWorld(objs, nil, settings, opts), Reader: c}, nil
}

// acceptTrustDomains takes callers' names from the trust domains that the mesh accepts
// now, of which the chart's may be none any more.
func acceptTrustDomains(opts *ingest.Options, now rotation.State) {
	signing, ok := now.Find(now.Signing)
	if !ok {
		return
	}
	opts.TrustDomain, opts.AlsoTrusted = signing.TrustDomain, nil
	names := slices.Clone(now.Fading)
	for _, t := range now.Trusted {
		names = append(names, t.TrustDomain)
	}
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		if name != signing.TrustDomain {
			opts.AlsoTrusted = append(opts.AlsoTrusted, mesh.TrustDomain{Name: name})
		}
	}
}

// policyReader reads the kinds of policy in the versions that the cluster has, as
// outriggerd does.
func (a *asking) policyReader(in installation) (client.Reader, error) {
	cfg, err := in.flags.ToRESTConfig()
	if err != nil {
		return nil, fmt.Errorf("find the cluster: %w", err)
	}
	asks, err := discovery.NewDiscoveryClientForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("connect to the cluster: %w", err)
	}
	served, err := api.Discover(asks.ServerResourcesForGroupVersion, apierrors.IsNotFound)
	if err != nil {
		return nil, err
	}
	scheme := runtime.NewScheme()
	if err := clientscheme.AddToScheme(scheme); err != nil {
		return nil, fmt.Errorf("register kinds: %w", err)
	}
	api.AddServed(scheme, served)
	c, err := client.New(cfg, client.Options{Scheme: scheme})
	if err != nil {
		return nil, fmt.Errorf("connect to the cluster: %w", err)
	}
	return c, nil
}

// arguments are those of outriggerd, by the name of the flag.
type arguments map[string]string

// told returns what outriggerd was started with, which says how the mesh is set.
func (a *asking) told(ctx context.Context, c client.Reader) (arguments, error) {
	var d appsv1.Deployment
	err := c.Get(ctx, client.ObjectKey{Namespace: a.systemNamespace, Name: "outriggerd"}, &d)
	if apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("there is no Deployment outriggerd in namespace %s: the mesh is not installed, or elsewhere (--system-namespace)", a.systemNamespace)
	}
	if err != nil {
		return nil, fmt.Errorf("read Deployment %s/outriggerd: %w", a.systemNamespace, err)
	}
	for _, k := range d.Spec.Template.Spec.Containers {
		if k.Name == "outriggerd" {
			return readArguments(k.Args), nil
		}
	}
	return nil, fmt.Errorf("the Deployment %s/outriggerd has no container outriggerd", a.systemNamespace)
}

// readArguments takes flags apart as outriggerd does, all of which have a value.
func readArguments(args []string) arguments {
	out := arguments{}
	for i := 0; i < len(args); i++ {
		name, value, ok := strings.Cut(strings.TrimLeft(args[i], "-"), "=")
		if !ok && i+1 < len(args) {
			i++
			value = args[i]
		}
		out[name] = value
	}
	return out
}

// values are the chart's that lead to these arguments. What is not there has the
// chart's default, which is outriggerd's own.
func (a arguments) values() (chartValues, error) {
	v := chartValues{TrustDomain: "cluster.local", ClusterDomain: "cluster.local", OSMMeshName: "osm", TrafficPolicy: "permissive", Egress: "allow"}
	for flag, into := range map[string]*string{
		"trust-domain": &v.TrustDomain, "cluster-domain": &v.ClusterDomain, "osm-mesh": &v.OSMMeshName,
		"traffic-policy": &v.TrafficPolicy, "egress": &v.Egress,
	} {
		if value, ok := a[flag]; ok {
			*into = value
		}
	}
	// The lists are written as in a pod's annotations, and read by the same code.
	redirect, err := annotation.ParseRedirect(map[string]string{
		annotation.ExcludeInboundPorts: a["exclude-inbound-ports"], annotation.ExcludeOutboundPorts: a["exclude-outbound-ports"],
		annotation.ExcludeOutboundCIDRs: a["exclude-outbound-cidrs"], annotation.IncludeOutboundCIDRs: a["include-outbound-cidrs"],
	})
	if err != nil {
		return chartValues{}, fmt.Errorf("read the arguments of outriggerd: %w", err)
	}
	v.Exclusions.InboundPorts, v.Exclusions.OutboundPorts = redirect.ExcludeInboundPorts, redirect.ExcludeOutboundPorts
	v.Exclusions.OutboundCIDRs, v.Exclusions.IncludeOutboundCIDRs = redirect.ExcludeOutboundCIDRs, redirect.IncludeOutboundCIDRs
	for _, text := range strings.FieldsFunc(a["service-cidrs"], func(r rune) bool { return r == ',' || r == ' ' }) {
		cidr, err := netip.ParsePrefix(text)
		if err != nil {
			return chartValues{}, fmt.Errorf("read the arguments of outriggerd: --service-cidrs: %w", err)
		}
		v.ServiceCIDRs = append(v.ServiceCIDRs, cidr.Masked())
	}
	return v, nil
}

// serviceCIDRs asks the API server, as outriggerd does where no flag says it.
func serviceCIDRs(ctx context.Context, c client.Reader) ([]netip.Prefix, error) {
	var list networkingv1.ServiceCIDRList
	if err := c.List(ctx, &list); err != nil {
		return nil, fmt.Errorf("ask for the ranges of ClusterIPs: %w", err)
	}
	var out []netip.Prefix
	for _, item := range list.Items {
		for _, text := range item.Spec.CIDRs {
			cidr, err := netip.ParsePrefix(text)
			if err != nil {
				return nil, fmt.Errorf("read ServiceCIDR %s: %w", item.Name, err)
			}
			out = append(out, cidr.Masked())
		}
	}
	if len(out) == 0 {
		return nil, errors.New("the API server has no ServiceCIDR, and outriggerd no --service-cidrs")
	}
	return out, nil
}
