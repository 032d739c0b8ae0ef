/* Prints the catalog: one line for each product, with its price and what is in stock. */
#include <stdio.h>
#include <string.h>

int main(int argc, char **argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: catalog PRODUCTS.CSV\n");
        return 2;
    }
    FILE *file = fopen(argv[1], "r");
    if (!file) {
        perror(argv[1]);
        return 1;
    }
    char name[64];
    int cents, stock;
    while (fscanf(file, "%63[^,],%d,%d\n", name, &cents, &stock) == 3) {
        printf("%-8s %3d.%02d  %s\n", name, cents / 100, cents % 100, stock > 0 ? "in stock" : "sold out");
    }
    fclose(file);
    return 0;
}
