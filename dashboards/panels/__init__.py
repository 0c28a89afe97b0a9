"""Development only: pictures of the dashboards."""
