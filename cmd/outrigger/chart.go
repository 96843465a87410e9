package main

import (
	"bytes"
	"fmt"
	"io/fs"
	"log/slog"

	"helm.sh/helm/v4/pkg/action"
	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/loader/archive"
	chart "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/cli"
	"helm.sh/helm/v4/pkg/cli/values"
	"helm.sh/helm/v4/pkg/getter"
	release "helm.sh/helm/v4/pkg/release/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"sigs.k8s.io/yaml"

	"github.com/outrigger-mesh/outrigger/manifests"
)

// releaseName is the name under which Helm remembers the installation. There is
// one for each system namespace.
const releaseName = "outrigger"

// loadChart reads the chart inside this binary.
func loadChart() (*chart.Chart, error) {
	var files []*archive.BufferedFile
	err := fs.WalkDir(manifests.Chart, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := manifests.Chart.ReadFile(path)
		files = append(files, &archive.BufferedFile{Name: path, Data: data})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read the chart: %w", err)
	}
	return loader.LoadFiles(files)
}

// chartCRDs returns the CustomResourceDefinitions of the chart, converted by an
// installation in a namespace.
func chartCRDs(namespace string) ([]*apiextensionsv1.CustomResourceDefinition, error) {
	entries, err := manifests.Chart.ReadDir("crds")
	if err != nil {
		return nil, fmt.Errorf("read the chart's CRDs: %w", err)
	}
	var found []*apiextensionsv1.CustomResourceDefinition
	for _, entry := range entries {
		data, err := manifests.Chart.ReadFile("crds/" + entry.Name())
		if err != nil {
			return nil, fmt.Errorf("read the chart's CRDs: %w", err)
		}
		crd := &apiextensionsv1.CustomResourceDefinition{}
		if err := yaml.UnmarshalStrict(data, crd); err != nil {
			return nil, fmt.Errorf("read the chart's CRD %s: %w", entry.Name(), err)
		}
		if to := converter(crd); to != nil {
			to.Namespace = namespace
		}
		found = append(found, crd)
	}
	return found, nil
}

// converter returns the Service that converts between the versions of a kind, nil
// where none is needed.
func converter(crd *apiextensionsv1.CustomResourceDefinition) *apiextensionsv1.ServiceReference {
	c := crd.Spec.Conversion
	if c == nil || c.Webhook == nil || c.Webhook.ClientConfig == nil {
		return nil
	}
	return c.Webhook.ClientConfig.Service
}

// mergeValues joins what --values and --set say.
func mergeValues(opts values.Options) (map[string]any, error) {
	return opts.MergeValues(getter.All(cli.New()))
}

// newHelm returns Helm's configuration for a namespace of the cluster.
func newHelm(flags *genericclioptions.ConfigFlags, namespace string) (*action.Configuration, error) {
	// Helm tells its own story at length; what a user needs comes as an error.
	cfg := action.NewConfiguration()
	cfg.SetLogger(slog.DiscardHandler)
	if err := cfg.Init(flags, namespace, "secret"); err != nil {
		return nil, fmt.Errorf("prepare helm: %w", err)
	}
	return cfg, nil
}

// render returns the plain YAML of an installation, without asking any cluster.
func render(namespace string, vals map[string]any) (string, error) {
	chrt, err := loadChart()
	if err != nil {
		return "", err
	}
	cfg := action.NewConfiguration()
	cfg.SetLogger(slog.DiscardHandler)
	install := action.NewInstall(cfg)
	install.DryRunStrategy = action.DryRunClient
	install.ReleaseName, install.Namespace = releaseName, namespace
	oldestVersion, err := common.ParseKubeVersion("v" + oldest)
	if err != nil {
		return "", fmt.Errorf("render the chart: %w", err)
	}
	install.KubeVersion = oldestVersion
	released, err := install.Run(chrt, vals)
	if err != nil {
		return "", fmt.Errorf("render the chart: %w", err)
	}
	rel, ok := released.(*release.Release)
	if !ok {
		return "", fmt.Errorf("render the chart: helm returned a %T", released)
	}
	var out bytes.Buffer
	fmt.Fprintf(&out, "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: %s\n", namespace)
	for _, crd := range chrt.CRDObjects() {
		data := bytes.ReplaceAll(crd.File.Data, []byte("namespace: "+defaultNamespace+"\n"), []byte("namespace: "+namespace+"\n"))
		fmt.Fprintf(&out, "---\n%s", bytes.TrimPrefix(data, []byte("---\n")))
	}
	out.WriteString(rel.Manifest)
	return out.String(), nil
}
